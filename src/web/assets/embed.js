// The page in a dashboard's frame: what the widget route says of one project, and nothing else.

import { get } from "./api.js";
import { h, show } from "./dom.js";
import { widgetStatus } from "./text.js";

const POLL_MILLISECONDS = 15_000;
const VALUES = 4;

const project = new URLSearchParams(location.search).get("project");
const place = document.getElementById("view");
let known = null;

async function look() {
  if (document.hidden) return;
  let problem = null;
  try {
    known = rowsOf(await get(`widget/dashy?project=${encodeURIComponent(project)}`));
  } catch (error) {
    problem = error;
  }
  show(place, h("h1", project),
    problem && h("p.notice.is-bad", { role: "alert" }, problem.status === 0 ? `Not connected: ${problem.message}` : problem.message),
    known?.length === 0 && h("p", "No repositories yet."),
    known?.length > 0 && h("ul", known.map(([name, version, status, time]) =>
      h("li", { "data-key": name }, widgetStatus(status), h("b", name), h("code", version), h("small", time)))));
}

/** Four widgets in order make a repository. */
function rowsOf({ widgets }) {
  const values = widgets.map(({ value }) => value);
  return Array.from({ length: values.length / VALUES }, (_, row) => values.slice(row * VALUES, (row + 1) * VALUES));
}

if (project) {
  document.title = `${project} · Shiparr`;
  look();
  setInterval(look, POLL_MILLISECONDS);
  document.addEventListener("visibilitychange", look);
} else {
  show(place, h("p.notice", "Which project? Add project=NAME to the address."));
}
