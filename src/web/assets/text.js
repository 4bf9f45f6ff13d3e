// Words for what the API says: statuses with their shapes, times, durations.

import { h, svg } from "./dom.js";

// A shape, and the words for it: of a repository, and of a deployment.
const STATUSES = {
  success: ["ok", "Deployed", "Success"],
  failed: ["bad", "Failed"],
  running: ["busy", "Deploying", "Running"],
  pending: ["queued", "Pending"],
  waiting: ["waiting", "Waiting"],
  never_deployed: ["none", "Never deployed"],
  orphaned: ["none", "Orphaned"],
  skipped: ["none", "Skipped"],
};
const WIDGET = {
  running: ["ok", "Running"],
  stopped: ["bad", "Failed"],
  deploying: ["busy", "Deploying"],
  unknown: ["none", "Unknown"],
};

/** The status of a repository, as a word and a shape. */
export const repositoryStatus = (repository) => badge(STATUSES[shownStatus(repository)][0], repositoryWord(repository));
export const repositoryWord = (repository) => STATUSES[shownStatus(repository)][1];
/** That of a deployment. */
export const deploymentStatus = (status) => badge(STATUSES[status][0], deploymentWord(status));
export const deploymentWord = (status) => STATUSES[status].at(-1);
/** That which the widget shows. */
export const widgetStatus = (word) => badge(...(WIDGET[word] ?? WIDGET.unknown));

/** That of a container. */
export function containerStatus({ state, health, exit_code: code }) {
  const shapes = { running: "ok", paused: "waiting", created: "queued", exited: code === 0 ? "none" : "bad", unhealthy: "bad", starting: "busy" };
  const text = [state, health, state === "exited" && `code ${code}`].filter(Boolean).join(", ");
  return badge(shapes[health] ?? shapes[state] ?? "bad", text);
}

const shownStatus = ({ orphaned, status }) => (orphaned && status !== "running" && status !== "pending" ? "orphaned" : status);

/** A word with a shape before it. */
export const badge = (shape, text) => h(`span.status.is-${shape}`, shapeOf(shape), h("span", text));

const CIRCLE = "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2z";
// Each one differs in its form, not only in its colour.
const SHAPES = {
  ok: { solid: "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1z", mark: "M4.8 8.2l2.3 2.3 4.2-4.7" },
  bad: { solid: "M5 1h6l4 4v6l-4 4H5l-4-4V5z", mark: "M5.5 5.5l5 5m0-5l-5 5" },
  busy: { faint: CIRCLE, line: "M8 2a6 6 0 0 1 6 6" },
  queued: { line: `${CIRCLE}m0 2.7V8l2.3 1.6` },
  waiting: { line: "M2 2h12v12H2zm4.2 3.2v5.6m3.6-5.6v5.6" },
  none: { dashed: CIRCLE },
};

const shapeOf = (name) =>
  svg("svg.shape", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" },
    Object.entries(SHAPES[name]).map(([kind, d]) => svg(`path.${kind}`, { d })));

/** The first digits of a commit. */
export const short = (hash) => (hash ? hash.slice(0, 7) : "–");

/** `0.8 s`, `12 s`, `3 min 20 s`, `1 h 5 min`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (count, unit, rest, smaller) => `${count} ${unit}${rest ? ` ${rest} ${smaller}` : ""}`;
  const minutes = Math.floor(whole / 60);
  return minutes < 60 ? two(minutes, "min", whole % 60, "s") : two(Math.floor(minutes / 60), "h", minutes % 60, "min");
}

/** Seconds since a time. */
export const secondsSince = (time) => (Date.now() - Date.parse(time)) / 1000;

/** A time as its distance from now, in full for whoever points at it. */
export function ago(time, absent = "–") {
  if (!time) return absent;
  return h("time", { datetime: time, title: new Date(time).toLocaleString() }, distance(-secondsSince(time)));
}

/** The same of what is to come; what is late comes now. */
export const until = (time) => (secondsSince(time) > 0 ? "now" : ago(time));

/** Up to so many seconds, in units of so many. */
const DISTANCES = [[60, 1, "s"], [3600, 60, "min"], [36 * 3600, 3600, "h"], [Infinity, 86400, "d"]];

function distance(seconds) {
  const far = Math.abs(seconds);
  if (far < 2) return "now";
  const [, size, unit] = DISTANCES.find(([limit]) => far < limit);
  const text = `${Math.round(far / size)} ${unit}`;
  return seconds < 0 ? `${text} ago` : `in ${text}`;
}
