// A log that grows: lines come in groups, a bounded number of them is shown, and it follows its end until somebody
// scrolls up.

import { stream } from "./api.js";
import { h } from "./dom.js";

/** Lines in the page. */
const LINES_MAX = 5_000;
/** Lines that come are put in together. */
const GROUP_MILLISECONDS = 60;
const AGAIN_MILLISECONDS = 3_000;
/** So near to its end, it is at it. */
const END_PIXELS = 24;
/** Colours and cursor movements of terminals, which are no text. */
const ESCAPES = /\u001b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\u0007]*\u0007|.)/g;
const STAMPED = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) (?:(warning|error): )?(.*)$/;

export class LogPane {
  #lines;
  #note = h("p.log-note", { role: "status" });
  #jump = h("button.jump", { hidden: true }, "Follow the end");
  #waiting = [];
  #timer = null;
  #controller = null;
  #isFollowing = true;
  /** Lines so far; a deployment's log that breaks off goes on after them. */
  #taken = 0;
  #isOver = false;

  /** `isStamped`: its lines begin with a time and, where it matters, a level, and it always begins with the first one. */
  constructor(label, path, isStamped) {
    Object.assign(this, { path, isStamped });
    this.#lines = h("div.log", { role: "log", "aria-live": "off", "aria-label": label, tabindex: 0 });
    this.element = h("div.log-frame", this.#lines, this.#jump, this.#note);
    this.#lines.addEventListener("scroll", () => this.#look(), { passive: true });
    this.#jump.addEventListener("click", () => {
      this.#toEnd();
      this.#lines.focus();
    });
  }

  /** Reads it to its end, unless it does; opens it again where it breaks off. */
  async start() {
    if (this.#controller || this.#isOver || document.hidden) return;
    const { signal } = (this.#controller = new AbortController());
    while (!signal.aborted) {
      try {
        await this.#read(signal);
        this.#isOver = true;
        this.#say(this.#taken > LINES_MAX ? `End of the log: its last ${LINES_MAX} lines.` : "End of the log.");
        return;
      } catch (error) {
        if (signal.aborted) return;
        // Nobody answers, or all places for streams are taken.
        this.#isOver = error.status > 0 && error.status !== 503;
        this.#say(`${error.message}${this.#isOver ? "" : "; trying again"}`);
        if (this.#isOver) return;
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MILLISECONDS));
      }
    }
  }

  stop() {
    this.#controller?.abort();
    this.#controller = null;
  }

  async #read(signal) {
    if (!this.isStamped) {
      this.#taken = 0;
      this.#lines.replaceChildren();
    }
    let skip = this.#taken;
    const take = (lines) => {
      const fresh = lines.slice(skip);
      skip = Math.max(0, skip - lines.length);
      this.#taken += fresh.length;
      this.#waiting = this.#waiting.concat(fresh).slice(-LINES_MAX);
      this.#timer ??= setTimeout(() => this.#put(), GROUP_MILLISECONDS);
    };
    this.#say("Following…");
    await stream(this.path, take, signal);
    this.#put();
  }

  #put() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#lines.append(...this.#waiting.map((line) => this.#line(line)));
    this.#waiting = [];
    while (this.#lines.childElementCount > LINES_MAX) this.#lines.firstElementChild.remove();
    if (this.#isFollowing) this.#toEnd();
  }

  #line(text) {
    const plain = text.replace(ESCAPES, "").replace(/\r/g, "");
    const [, time, level, message] = (this.isStamped && STAMPED.exec(plain)) || [null, null, null, plain];
    const stamp = time && h("time", { datetime: time, title: time }, new Date(time).toLocaleTimeString([], { hour12: false }));
    return h(level ? `div.line.is-${level}` : "div.line", stamp, stamp && " ", level && h("b", `${level}: `), message);
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.#lines;
    this.#isFollowing = scrollHeight - scrollTop - clientHeight < END_PIXELS;
    this.#jump.hidden = this.#isFollowing;
  }

  #toEnd() {
    this.#lines.scrollTop = this.#lines.scrollHeight;
    this.#jump.hidden = true;
  }

  #say(text) {
    if (this.#note.textContent !== text) this.#note.textContent = text;
  }
}
