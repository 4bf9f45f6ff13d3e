// A log that grows: lines come in groups, a bounded number of them is shown, and it follows its end until somebody
// scrolls up.

import { ApiError, stream } from "./api.js";
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
  #note = h("p", { class: "log-note", role: "status" });
  #cut = h("p", { class: "log-cut", hidden: true }, `Only the last ${LINES_MAX} lines are shown.`);
  #jump = h("button", { type: "button", class: "jump", hidden: true }, "Follow the end");
  #waiting = [];
  #timer = null;
  #controller = null;
  #isFollowing = true;
  /** Of the stream, so that one that is opened again goes on where it broke off. */
  #taken = 0;

  /** `isStamped`: its lines begin with a time and, where it matters, a level. */
  constructor(label, isStamped) {
    this.isStamped = isStamped;
    this.#lines = h("div", { class: "log", role: "log", "aria-live": "off", "aria-label": label, tabindex: 0 });
    this.element = h("div", { class: "log-frame" }, this.#cut, this.#lines, this.#jump, this.#note);
    this.#lines.addEventListener("scroll", () => this.#look(), { passive: true });
    this.#jump.addEventListener("click", () => {
      this.#isFollowing = true;
      this.#toEnd();
      this.#lines.focus();
    });
  }

  /** Reads this address to its end; opens it again where it breaks off. Another start takes its place. */
  async start(path) {
    this.stop();
    const controller = new AbortController();
    this.#controller = controller;
    this.#taken = 0;
    this.#waiting = [];
    this.#lines.replaceChildren();
    this.#cut.hidden = true;
    this.#say("Loading…");
    while (!controller.signal.aborted) {
      try {
        await this.#read(path, controller.signal);
        this.#say(this.#taken ? "End of the log." : "The log is empty.");
        return;
      } catch (error) {
        if (controller.signal.aborted) return;
        this.#say(`${error.message}${isPassing(error) ? "; trying again" : ""}`);
        if (!isPassing(error)) return;
        await pause(AGAIN_MILLISECONDS, controller.signal);
      }
    }
  }

  stop() {
    this.#controller?.abort();
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  async #read(path, signal) {
    let skip = this.#taken;
    const take = (lines) => {
      const fresh = lines.slice(skip);
      skip = Math.max(0, skip - lines.length);
      this.#taken += fresh.length;
      for (const line of fresh) this.#waiting.push(line);
      if (this.#waiting.length > LINES_MAX) {
        this.#waiting = this.#waiting.slice(-LINES_MAX);
        this.#cut.hidden = false;
      }
      this.#say("Following…");
      this.#timer ??= setTimeout(() => this.#put(), GROUP_MILLISECONDS);
    };
    await stream(path, take, signal);
    this.#put();
  }

  #put() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#lines.append(...this.#waiting.map((line) => this.#line(line)));
    this.#waiting = [];
    for (let over = this.#lines.childElementCount - LINES_MAX; over > 0; over -= 1) {
      this.#lines.firstElementChild.remove();
      this.#cut.hidden = false;
    }
    if (this.#isFollowing) this.#toEnd();
  }

  #line(text) {
    const plain = text.replace(ESCAPES, "").replace(/\r/g, "");
    const [, time, level, message] = (this.isStamped && STAMPED.exec(plain)) || [null, null, null, plain];
    const stamp = time && h("time", { datetime: time, title: time }, new Date(time).toLocaleTimeString([], { hour12: false }));
    return h("div", { class: level ? `line is-${level}` : "line" }, stamp, level && h("b", {}, `${level}: `), message);
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

/** Nobody answers, or all places for streams are taken. */
const isPassing = (error) => !(error instanceof ApiError) || error.status === 0 || error.status === 503;

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
