// Durations of deployments as bars, the newest on the right; those that failed are hollow.

import { h, svg } from "./dom.js";
import { deploymentWord, duration } from "./text.js";

const BARS_MAX = 30;
const [WIDTH, GAP, HEIGHT, LEAST] = [8, 4, 96, 2];

/** A figure, or null where there is nothing to compare. The list of deployments says the same in words. */
export function chart(deployments, addressOf) {
  const bars = deployments.filter((one) => one.duration_seconds !== null && one.status !== "skipped").slice(0, BARS_MAX).reverse();
  if (bars.length < 2) return null;
  const sorted = bars.map((one) => one.duration_seconds).sort((one, other) => one - other);
  const longest = Math.max(sorted.at(-1), 0.1);
  const median = (sorted[bars.length >> 1] + sorted[(bars.length - 1) >> 1]) / 2;
  const summary = `Median ${duration(median)}, longest ${duration(longest)}`;
  const whole = bars.length * (WIDTH + GAP) - GAP;
  const drawn = bars.map(({ id, status, duration_seconds: seconds }, index) => {
    const tall = Math.max(LEAST, (seconds / longest) * HEIGHT);
    return svg("a", { href: addressOf(id), tabindex: -1 },
      svg(`rect.bar.is-${status}`, { x: index * (WIDTH + GAP), y: HEIGHT - tall, width: WIDTH, height: tall, rx: 1 },
        svg("title", `#${id} ${deploymentWord(status)}, ${duration(seconds)}`)));
  });
  return h("figure",
    h("h2", "Durations"),
    svg("svg", { role: "img", "aria-label": `Durations of the last ${bars.length} deployments. ${summary}.`, viewBox: `0 0 ${whole} ${HEIGHT}`, width: whole, height: HEIGHT }, drawn),
    h("figcaption", `${summary}; hollow: failed`));
}
