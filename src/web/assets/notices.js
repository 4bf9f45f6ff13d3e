// What stands above every view: whether the page hears what happens, and what is wrong with the whole host.

import { h } from "./dom.js";
import { state } from "./live.js";
import { badge } from "./text.js";

const CONNECTIONS = {
  connecting: ["busy", "Connecting"],
  live: ["ok", "Live"],
  polling: ["queued", "Asks every 5 s"],
  lost: ["bad", "Not connected"],
};

export const connectionLine = () => badge(...CONNECTIONS[state.connection]);

/** `isOverview`: what is about projects and repositories is told there alone. */
export function notices(isOverview) {
  const { health, lostAt, problem } = state;
  const { database, docker, config, remotes } = health?.checks ?? {};
  const told = (check, text) => check?.status === "failed" && h("div.notice.is-bad", { "data-key": text }, h("b", text), ` ${check.message}`);
  const listed = (items, text, line) =>
    isOverview && items?.length > 0 && h("details.notice.is-bad", { "data-key": text, open: true }, h("summary", h("b", text)), h("ul", items.map((one) => h("li", line(one)))));
  return [
    lostAt && h("div.notice.is-bad", { "data-key": "lost", role: "alert" }, h("b", "Not connected."),
      ` ${problem.message}. What you see is of ${lostAt.toLocaleTimeString()}; this page goes on trying.`),
    told(database, "The database cannot be used."),
    told(docker, "Docker does not answer."),
    listed(config?.problems, "Problems in the project files",
      ({ file, line, field, message }) => [h("code", `${file}${line ? `:${line}` : ""}`), field && [" ", h("code", field)], `: ${message}`]),
    listed(remotes?.repositories, "Checks that have failed for an hour",
      ({ repository, error }) => [h("b", repository), `: ${error}`]),
  ];
}
