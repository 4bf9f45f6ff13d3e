// The views: each one loads what it needs beyond the list of repositories, and says what the page shows.

import { get, getPage, repositoryPath } from "./api.js";
import { h, svg } from "./dom.js";
import { state } from "./live.js";
import { LogPane } from "./logs.js";
import {
  ago, containerStatus, count, deploymentStatus, deploymentWord, duration, repositoryStatus, secondsSince, shapeOf, short,
} from "./text.js";

const PAGE_DEPLOYMENTS = 25;
const BARS_MAX = 30;
const CONTAINER_LINES = 500;
const VIEWER_REASON = "You are logged in to look: this takes the login of Shiparr_AUTH_USERNAME.";

const { access, configPath } = document.documentElement.dataset;
const mayChange = access === "full";

/** An address of this page. With a base in the document, a bare fragment would lead to the base. */
export const to = (route) => `${location.pathname}${location.search}#${route}`;
const link = (route, attributes, ...children) => h("a", { href: to(route), "data-route": route, ...attributes }, ...children);
const routeOf = ({ project, name }) => `/repositories/${encodeURIComponent(project)}/${encodeURIComponent(name)}`;
const nameOf = ({ project, name }) => `${project}/${name}`;
const isGoingOn = ({ status }) => status === "running" || status === "pending";

/** The project that the page was opened for, if for one. */
const onlyProject = new URLSearchParams(location.search).get("project");

const repositories = () =>
  [...state.repositories.values()].filter((repository) => !onlyProject || repository.project === onlyProject);
const repositoryNamed = (project, name) =>
  [...state.repositories.values()].find((one) => one.project === project && one.name === name);

const loading = () => h("p", { class: "quiet" }, "Loading…");
const trouble = (error) => h("p", { class: "notice is-bad", role: "alert" }, error.message);

/** Tables keep their roles where they are laid out as cards. */
const table = (label, columns, rows, kind) =>
  h("table", { role: "table", class: kind, "aria-label": label },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((title) =>
      h("th", { role: "columnheader", scope: "col" }, title)))),
    h("tbody", { role: "rowgroup" }, rows));
const row = (key, kind, ...cells) => h("tr", { role: "row", "data-key": key, class: kind }, cells);
const cell = (kind, ...children) => h("td", { role: "cell", class: kind }, children);

/** A button that opens a question; without the right to it, one that says why not. */
function button(label, action, { about, reason, data, kind }) {
  return h("button", {
    type: "button", class: kind, "data-action": action, "data-key": `${action}-${Object.values(data).join("-")}`,
    "aria-label": about, "aria-disabled": reason ? "true" : null, title: reason, ...data,
  }, label);
}

const actionReason = (repository) =>
  (!mayChange && VIEWER_REASON) || (repository.orphaned && "No project file names this repository any more.") || null;

function actionOf(repository) {
  const name = nameOf(repository);
  const data = { "data-repository": repository.id };
  if (isGoingOn(repository) && repository.last_deployment && isGoingOn(repository.last_deployment)) {
    return button("Cancel…", "cancel", { about: `Cancel the deployment of ${name}`, reason: mayChange ? null : VIEWER_REASON, data });
  }
  return button("Deploy…", "deploy", { about: `Deploy ${name}`, reason: actionReason(repository), data });
}

const commitOf = (hash, subject) => [h("code", {}, short(hash)), " ", subject && h("span", { class: "subject", title: subject }, subject)];

/** What is wrong with a repository, in lines. */
function problemsOf(repository) {
  const last = repository.last_deployment;
  const lines = [];
  if (last?.status === "failed" && !isGoingOn(repository)) lines.push(["Deployment", ` of ${short(last.commit_hash)} failed: `, last.error]);
  if (last?.status === "pending" && last.error) lines.push(["Pending", ": ", last.error]);
  if (repository.last_error) lines.push(["Check", " failed: ", repository.last_error]);
  return lines;
}

// ---- All repositories -----------------------------------------------------------------------------------------------

const KINDS = {
  problems: ["Problems", (one) => (one.status === "failed" || one.last_error !== null) && !one.orphaned],
  deploying: ["Deploying", isGoingOn],
  waiting: ["Waiting", (one) => one.status === "waiting"],
  orphaned: ["Orphaned", (one) => one.orphaned],
};

export class Overview {
  constructor(query) {
    this.words = query.get("q") ?? "";
    this.kind = KINDS[query.get("show")] ? query.get("show") : "";
  }

  title() {
    const failed = repositories().filter(KINDS.problems[1]).length;
    return `${failed ? `(${failed}) ` : ""}${onlyProject ?? "Repositories"}`;
  }

  render() {
    if (!state.isLoaded) return loading();
    const all = repositories();
    const projects = state.projects.filter(({ name }) => !onlyProject || name === onlyProject);
    const head = h("h1", { tabindex: -1 }, onlyProject ?? "Repositories");
    if (all.length === 0) return [head, this.#empty(projects)];
    const wanted = this.words.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (one) => {
      const text = [one.project, one.name, one.branch, one.git_url, one.status, one.last_commit_hash, one.last_deployment?.commit_subject];
      const all = text.join(" ").toLowerCase();
      return wanted.every((word) => all.includes(word)) && (!this.kind || KINDS[this.kind][1](one));
    };
    const found = all.filter(fits);
    const sections = projects.map((project) => this.#project(project, found.filter((one) => one.project === project.name)));
    return [
      h("div", { class: "head" }, head, this.#filter(all)),
      h("p", { class: "unseen", role: "status" }, wanted.length || this.kind ? `${found.length} of ${all.length} shown` : ""),
      sections,
      found.length === 0 && h("p", { class: "quiet", "data-key": "nothing" }, "No repository fits. ",
        h("button", { type: "button", class: "plain", "data-action": "clear-filter" }, "Show all")),
    ];
  }

  /** Takes what was typed or chosen; answers the address of it. */
  filter(words, kind) {
    this.words = words;
    this.kind = kind;
    const query = new URLSearchParams();
    if (words) query.set("q", words);
    if (kind) query.set("show", kind);
    return `/${query.size ? `?${query}` : ""}`;
  }

  #filter(all) {
    const chip = (kind, label, number) =>
      h("button", { type: "button", class: "chip", "data-key": `chip-${kind}`, "data-action": "show-kind", "data-kind": kind, "aria-pressed": String(this.kind === kind) },
        label, " ", h("b", {}, number));
    const chips = Object.entries(KINDS)
      .map(([kind, [label, test]]) => [kind, label, all.filter(test).length])
      .filter(([kind, , number]) => number > 0 || kind === this.kind);
    return h("div", { class: "filter", role: "search" },
      h("div", { class: "chips", role: "group", "aria-label": "Which repositories" }, chip("", "All", all.length), chips.map((one) => chip(...one))),
      h("input", { type: "search", id: "filter", value: this.words, placeholder: "Filter", "aria-label": "Filter repositories", autocomplete: "off", spellcheck: "false" }));
  }

  #project(project, found) {
    if (found.length === 0 && (this.words || this.kind)) return null;
    const rows = found.map((one) => {
      const last = one.last_deployment;
      const subject = last && last.commit_hash === one.last_commit_hash ? last.commit_subject : null;
      const isNew = one.status === "waiting" && one.observed_commit !== one.last_commit_hash;
      return row(`repository-${one.id}`, one.orphaned ? "is-orphan" : null,
        cell("c-status", repositoryStatus(one)),
        cell("c-name", link(routeOf(one), {}, one.name)),
        cell("c-commit", h("div", { class: "commit" }, commitOf(one.last_commit_hash, subject)),
          isNew && h("div", { class: "quiet" }, "New: ", h("code", {}, short(one.observed_commit))),
          problemsOf(one).map(([what, how, text]) => h("div", { class: what === "Pending" ? "quiet" : "problem" }, what, how, text))),
        cell("c-age", h("span", { class: "label" }, "Deployed "), ago(last?.finished_at ?? last?.started_at)),
        cell("c-next", h("span", { class: "label" }, "Next check "), one.orphaned ? "–" : ago(one.next_check_at)),
        cell("c-action", actionOf(one)));
    });
    return h("section", { "data-key": `project-${project.name}`, class: "project", "aria-labelledby": `project-${project.name}` },
      h("h2", { id: `project-${project.name}` }, project.name,
        h("small", {}, project.description ?? "", h("span", { class: "unseen" }, ` ${count(found.length, "repository", "repositories")}`))),
      found.length === 0
        ? h("p", { class: "quiet" }, "This project has no repositories.")
        : table(`Repositories of ${project.name}`, ["Status", "Repository", "Deployed commit", "Deployed", "Next check", h("span", { class: "unseen" }, "Action")], rows, "repositories"));
  }

  #empty(projects) {
    if (onlyProject && projects.length === 0) {
      return h("div", { class: "empty" }, h("p", {}, `There is no project ${onlyProject}.`), h("p", {}, h("a", { href: "./" }, "All projects")));
    }
    const sample = "project: homelab\n\nrepositories:\n  media:\n    url: github.com/you/media.git\n";
    return h("div", { class: "empty" },
      h("h2", {}, projects.length ? "No repositories yet" : "No projects yet"),
      h("p", {}, "A project is a file that names the Git repositories of your stacks. Write one into ", h("code", {}, configPath),
        ", for example ", h("code", {}, "homelab.yaml"), ":"),
      h("pre", { tabindex: 0, "aria-label": "A project file" }, h("code", {}, sample)),
      h("p", {}, "It is read within two seconds, and shows here. ", h("code", {}, "shiparr check"), " says what is wrong with it before that; a private repository needs a token too, which the README shows."));
  }
}

// ---- One repository -------------------------------------------------------------------------------------------------

export class RepositoryView {
  constructor(project, name) {
    this.project = project;
    this.name = name;
    this.deployments = null;
    this.before = null;
    this.containers = null;
    this.problem = null;
    this.containersProblem = null;
  }

  title() {
    return `${this.project}/${this.name}`;
  }

  async load() {
    const path = repositoryPath(this);
    const history = getPage(`${path}/deployments?limit=${PAGE_DEPLOYMENTS}`).then(
      ({ items, before }) => {
        // Those that were asked for before stay.
        const oldest = items.at(-1)?.id ?? 0;
        const older = (this.deployments ?? []).filter(({ id }) => id < oldest);
        if (!older.length) this.before = before;
        this.deployments = [...items, ...older];
        this.problem = null;
      },
      (error) => (this.problem = error),
    );
    await Promise.all([history, this.loadContainers()]);
  }

  async loadContainers() {
    try {
      this.containers = await get(`${repositoryPath(this)}/containers`);
      this.containersProblem = null;
    } catch (error) {
      this.containersProblem = error;
    }
  }

  async more() {
    const { items, before } = await getPage(`${repositoryPath(this)}/deployments?limit=${PAGE_DEPLOYMENTS}&${this.before}`);
    this.deployments.push(...items);
    this.before = before;
  }

  /** Answers whether it is one of its own. */
  take(deployment) {
    if (deployment.project !== this.project || deployment.repository !== this.name || !this.deployments) return false;
    const at = this.deployments.findIndex(({ id }) => id === deployment.id);
    if (at >= 0) this.deployments[at] = deployment;
    else this.deployments.unshift(deployment);
    return true;
  }

  render() {
    const one = repositoryNamed(this.project, this.name);
    if (!one) return state.isLoaded ? [crumbs(), h("h1", { tabindex: -1 }, this.title()), h("p", {}, `There is no repository ${this.title()}.`)] : loading();
    return [
      crumbs(),
      h("div", { class: "head" },
        h("h1", { tabindex: -1 }, h("small", {}, `${one.project}/`), one.name), repositoryStatus(one),
        h("div", { class: "actions" }, actionOf(one))),
      mayChange || h("p", { class: "quiet" }, VIEWER_REASON),
      one.orphaned && h("p", { class: "notice" }, "Orphaned: no project file names this repository any more. Its containers and files stay as they are; ", h("code", {}, "shiparr prune"), " forgets its records."),
      one.status === "waiting" && h("p", { class: "notice" }, h("code", {}, short(one.observed_commit)), " waits until somebody deploys it (", h("code", {}, "deploy: manual"), ")."),
      problemsOf(one).map(([what, how, text]) => h("p", { class: what === "Pending" ? "notice" : "notice is-bad" }, what, how, text)),
      h("div", { class: "columns" }, this.#facts(one), this.#chart()),
      this.#history(),
      this.#containers(),
    ];
  }

  #facts(one) {
    const last = one.last_deployment;
    const subject = last && last.commit_hash === one.last_commit_hash ? last.commit_subject : null;
    return h("section", { class: "panel", "aria-labelledby": "facts" }, h("h2", { id: "facts" }, "Details"),
      facts([
        ["Deployed commit", commitOf(one.last_commit_hash, subject)],
        ["Branch", [h("code", {}, one.branch), one.observed_commit && one.observed_commit !== one.last_commit_hash && [" at ", h("code", {}, short(one.observed_commit))]]],
        ["Remote", h("code", {}, one.git_url)],
        ["Folder of the stack", h("code", {}, one.path)],
        ["Working tree", h("code", {}, one.local_path)],
        ["Last check", ago(one.last_checked_at, "not yet")],
        ["Next check", one.orphaned ? "none" : [ago(one.next_check_at), ` (every ${duration(one.check_interval)})`]],
      ]));
  }

  #chart() {
    const done = (this.deployments ?? []).filter(({ status, duration_seconds: took }) => took !== null && status !== "skipped");
    const bars = done.slice(0, BARS_MAX).reverse();
    if (bars.length < 2) return null;
    return h("section", { class: "panel", "aria-labelledby": "durations" }, h("h2", { id: "durations" }, "Durations"), chart(bars));
  }

  #history() {
    const rows = (this.deployments ?? []).map((one) =>
      row(`deployment-${one.id}`, null,
        cell("c-status", deploymentStatus(one.status)),
        cell("c-id", link(`/deployments/${one.id}`, { "aria-label": `Deployment ${one.id}, ${deploymentWord(one.status)}` }, `#${one.id}`)),
        cell("c-commit", h("div", { class: "commit" }, commitOf(one.commit_hash, one.commit_subject)),
          one.error && h("div", { class: one.status === "failed" ? "problem" : "quiet" }, one.error)),
        cell("c-trigger", triggerOf(one)),
        cell("c-age", ago(one.started_at ?? one.created_at)),
        cell("c-took", took(one))));
    return h("section", { "aria-labelledby": "history" }, h("h2", { id: "history" }, "History"),
      this.problem && trouble(this.problem),
      !this.deployments && !this.problem && loading(),
      this.deployments?.length === 0 && h("p", { class: "quiet" }, "Nothing was deployed yet."),
      rows.length > 0 && table(`Deployments of ${this.title()}`, ["Status", "Deployment", "Commit", "Trigger", "Started", "Duration"], rows, "deployments"),
      this.before && h("p", {}, h("button", { type: "button", "data-action": "more" }, "Older deployments")));
  }

  #containers() {
    const rows = (this.containers ?? []).map((one) =>
      row(`container-${one.id}`, null,
        cell("c-status", containerStatus(one)),
        cell("c-name", h("b", {}, one.service), h("div", { class: "quiet" }, one.name)),
        cell("c-image", h("code", {}, one.image)),
        cell("c-age", ago(one.started_at)),
        cell("c-action", mayChange ? link(`${routeOf(this)}/containers/${encodeURIComponent(one.name)}`, { "aria-label": `Log of ${one.name}` }, "Log") : null)));
    return h("section", { "aria-labelledby": "containers" },
      h("h2", { id: "containers" }, "Containers", h("button", { type: "button", class: "plain", "data-action": "containers", "aria-label": "Look at the containers again" }, "Refresh")),
      this.containersProblem && trouble(this.containersProblem),
      !this.containers && !this.containersProblem && loading(),
      this.containers?.length === 0 && h("p", { class: "quiet" }, "The stack has no containers."),
      rows.length > 0 && table(`Containers of ${this.title()}`, ["State", "Service", "Image", "Started", h("span", { class: "unseen" }, "Log")], rows, "containers"));
  }
}

const crumbs = (...steps) =>
  h("nav", { class: "crumbs", "aria-label": "Where this is" }, link("/", {}, "Repositories"), steps.map((step) => [h("span", { "aria-hidden": "true" }, " / "), step]));

const facts = (pairs) => h("dl", {}, pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

function triggerOf(one) {
  const times = one.attempt > 1 ? `, attempt ${one.attempt}` : "";
  return `${one.trigger}${times}${one.actor ? ` by ${one.actor}` : ""}`;
}

/** How long a deployment took, or has been going on. */
function took(one) {
  if (one.status === "running" && one.started_at) return duration(Math.max(0, Math.floor(secondsSince(one.started_at))));
  return duration(one.duration_seconds);
}

/** Durations as bars, the newest on the right; those that failed are hollow. The table below says the same. */
function chart(bars) {
  const [width, gap, height, head] = [8, 4, 72, 4];
  const longest = Math.max(...bars.map((one) => one.duration_seconds), 0.1);
  const sorted = bars.map((one) => one.duration_seconds).sort((one, other) => one - other);
  const median = sorted[Math.floor(sorted.length / 2)];
  const whole = bars.length * (width + gap) - gap;
  const summary = `The last ${bars.length} deployments took ${duration(median)} in the middle and ${duration(longest)} at most; ${bars.filter((one) => one.status === "failed").length} failed.`;
  const drawn = bars.map((one, index) => {
    const tall = Math.max(2, (one.duration_seconds / longest) * height);
    const inset = one.status === "failed" ? 0.75 : 0;
    return svg("a", { href: to(`/deployments/${one.id}`), tabindex: -1 },
      svg("rect", { class: `bar is-${one.status}`, x: index * (width + gap) + inset, y: head + height - tall + inset, width: width - 2 * inset, height: tall - inset, rx: 1 },
        svg("title", {}, `#${one.id} ${deploymentWord(one.status)}, ${duration(one.duration_seconds)}`)));
  });
  return h("figure", { class: "chart" },
    svg("svg", { role: "img", "aria-label": summary, viewBox: `0 0 ${whole} ${head + height + 1}`, width: whole, height: head + height + 1 },
      drawn, svg("path", { class: "axis", d: `M0 ${head + height + 0.5}h${whole}` })),
    h("figcaption", {}, `Median ${duration(median)}, longest ${duration(longest)}`,
      h("span", { class: "legend", "aria-hidden": "true" }, svg("svg", { width: 10, height: 10 }, svg("rect", { class: "bar is-success", width: 10, height: 10, rx: 1 })), " success ",
        svg("svg", { width: 10, height: 10 }, svg("rect", { class: "bar is-failed", x: 0.75, y: 0.75, width: 8.5, height: 8.5, rx: 1 })), " failed")));
}

// ---- One deployment -------------------------------------------------------------------------------------------------

export class DeploymentView {
  constructor(id) {
    this.id = id;
    this.deployment = null;
    this.problem = null;
    this.pane = new LogPane(`Log of deployment ${id}`, true);
  }

  title() {
    const one = this.deployment;
    return one ? `${deploymentWord(one.status)}: ${one.project}/${one.repository} #${one.id}` : `Deployment ${this.id}`;
  }

  async load() {
    try {
      this.deployment = await get(`api/deployments/${this.id}`);
      this.problem = null;
    } catch (error) {
      this.problem = error;
    }
  }

  take(deployment) {
    if (deployment.id !== this.id) return false;
    this.deployment = deployment;
    return true;
  }

  render() {
    const one = this.deployment;
    if (!one) return this.problem ? [crumbs(), h("h1", { tabindex: -1 }, `Deployment ${this.id}`), trouble(this.problem)] : loading();
    const target = { project: one.project, name: one.repository };
    const repository = repositoryNamed(one.project, one.repository);
    const data = { "data-repository": one.repository_id, "data-deployment": one.id };
    const again = repository && one.commit_hash && !isGoingOn(one)
      && button("Deploy this commit…", "deploy", { about: `Deploy ${short(one.commit_hash)} of ${nameOf(target)} again`, reason: actionReason(repository), data: { ...data, "data-commit": one.commit_hash } });
    const cancel = isGoingOn(one)
      && button("Cancel…", "cancel", { about: `Cancel the deployment of ${nameOf(target)}`, reason: mayChange ? null : VIEWER_REASON, data });
    return [
      crumbs(link(routeOf(target), {}, nameOf(target))),
      h("div", { class: "head" }, h("h1", { tabindex: -1 }, h("small", {}, "Deployment "), `#${one.id}`), deploymentStatus(one.status),
        h("div", { class: "actions" }, cancel, again)),
      one.error && h("p", { class: one.status === "failed" ? "notice is-bad" : "notice" }, one.error),
      h("div", { class: "panel" }, facts([
        ["Repository", link(routeOf(target), {}, nameOf(target))],
        ["Commit", commitOf(one.commit_hash, one.commit_subject)],
        one.commit_author && ["Author", one.commit_author],
        ["Trigger", triggerOf(one)],
        ["Asked for", ago(one.created_at)],
        ["Started", ago(one.started_at, "not yet")],
        ["Duration", took(one)],
      ])),
      h("section", { "aria-labelledby": "log" },
        h("h2", { id: "log" }, "Log", h("a", { href: `api/deployments/${one.id}/logs?follow=1` }, "Plain text")),
        h("div", { "data-key": "log", "data-keep": true, id: "log-place" })),
    ];
  }

  mounted() {
    const place = document.getElementById("log-place");
    if (place && !this.pane.element.isConnected) {
      place.append(this.pane.element);
      this.pane.start(`api/deployments/${this.id}/logs?follow=1`);
    }
  }

  leave() {
    this.pane.stop();
  }
}

// ---- The log of a container -----------------------------------------------------------------------------------------

export class ContainerView {
  constructor(project, name, container) {
    this.project = project;
    this.name = name;
    this.container = container;
    this.pane = new LogPane(`Log of ${container}`, false);
  }

  title() {
    return `Log of ${this.container}`;
  }

  render() {
    return [
      crumbs(link(routeOf(this), {}, nameOf(this))),
      h("div", { class: "head" }, h("h1", { tabindex: -1 }, h("small", {}, "Log of "), this.container),
        h("div", { class: "actions" }, h("button", { type: "button", "data-action": "reload-log" }, "Load again"))),
      mayChange || h("p", { class: "notice" }, VIEWER_REASON),
      h("div", { "data-key": "log", "data-keep": true, id: "log-place" }),
    ];
  }

  mounted() {
    const place = document.getElementById("log-place");
    if (place && !this.pane.element.isConnected) {
      place.append(this.pane.element);
      this.start();
    }
  }

  start() {
    this.pane.start(`containers/${encodeURIComponent(this.container)}/logs?tail=${CONTAINER_LINES}&follow=1`);
  }

  leave() {
    this.pane.stop();
  }
}

// ---- What happened --------------------------------------------------------------------------------------------------

export class Activity {
  constructor() {
    this.deployments = null;
    this.before = null;
    this.problem = null;
  }

  title() {
    return "Activity";
  }

  get #path() {
    return `api/deployments?limit=${PAGE_DEPLOYMENTS}${onlyProject ? `&project=${encodeURIComponent(onlyProject)}` : ""}`;
  }

  async load() {
    try {
      const { items, before } = await getPage(this.#path);
      this.deployments = items;
      this.before = before;
      this.problem = null;
    } catch (error) {
      this.problem = error;
    }
  }

  async more() {
    const { items, before } = await getPage(`${this.#path}&${this.before}`);
    this.deployments.push(...items);
    this.before = before;
  }

  take(deployment) {
    if (!this.deployments || (onlyProject && deployment.project !== onlyProject)) return false;
    const at = this.deployments.findIndex(({ id }) => id === deployment.id);
    if (at >= 0) this.deployments[at] = deployment;
    else this.deployments.unshift(deployment);
    return true;
  }

  render() {
    const rows = (this.deployments ?? []).map((one) => {
      const target = { project: one.project, name: one.repository };
      return row(`deployment-${one.id}`, null,
        cell("c-status", deploymentStatus(one.status)),
        cell("c-id", link(`/deployments/${one.id}`, { "aria-label": `Deployment ${one.id} of ${nameOf(target)}, ${deploymentWord(one.status)}` }, `#${one.id}`)),
        cell("c-name", link(routeOf(target), {}, nameOf(target))),
        cell("c-commit", h("div", { class: "commit" }, commitOf(one.commit_hash, one.commit_subject)),
          one.error && h("div", { class: one.status === "failed" ? "problem" : "quiet" }, one.error)),
        cell("c-trigger", triggerOf(one)),
        cell("c-age", ago(one.started_at ?? one.created_at)),
        cell("c-took", took(one)));
    });
    return [
      h("h1", { tabindex: -1 }, "Activity"),
      this.problem && trouble(this.problem),
      !this.deployments && !this.problem && loading(),
      this.deployments?.length === 0 && h("p", { class: "quiet" }, "Nothing was deployed yet."),
      rows.length > 0 && table("Deployments", ["Status", "Deployment", "Repository", "Commit", "Trigger", "Started", "Duration"], rows, "activity"),
      this.before && h("p", {}, h("button", { type: "button", "data-action": "more" }, "Older deployments")),
    ];
  }
}

export class Nowhere {
  title() {
    return "Not found";
  }

  render() {
    return [crumbs(), h("h1", { tabindex: -1 }, "There is nothing at this address")];
  }
}

// ---- Above every view -----------------------------------------------------------------------------------------------

/** Whether the page hears what happens, and of whom. */
export function connectionLine() {
  const [shape, text] = {
    connecting: ["busy", "Connecting"],
    live: ["ok", "Live"],
    polling: ["queued", "Asks every 5 s"],
    lost: ["bad", "Not connected"],
  }[state.connection];
  return [h("span", { class: `status is-${shape}` }, shapeOf(shape), h("span", {}, text))];
}

/** What concerns the whole host. */
export function notices(startedVersion) {
  const { health, connection, lostAt, problem } = state;
  const list = [];
  if (connection === "lost") {
    list.push(h("div", { class: "notice is-bad", "data-key": "lost", role: "alert" }, h("strong", {}, "Not connected. "),
      `${problem.message}. What you see is from before ${lostAt.toLocaleTimeString([], { hour12: false })}; this page goes on trying.`));
  }
  if (health?.version && startedVersion && health.version !== startedVersion) {
    list.push(h("div", { class: "notice", "data-key": "version" }, `Shiparr is version ${health.version} now. `,
      h("button", { type: "button", class: "plain", "data-action": "reload-page" }, "Load the page of it")));
  }
  const checks = health?.checks ?? {};
  const simple = { database: "The database cannot be used", docker: "Docker does not answer" };
  for (const [name, text] of Object.entries(simple)) {
    if (checks[name]?.status === "failed") {
      list.push(h("div", { class: "notice is-bad", "data-key": name }, h("strong", {}, `${text}. `), checks[name].message));
    }
  }
  const problems = checks.config?.problems ?? [];
  if (problems.length) {
    list.push(h("details", { class: "notice is-bad", "data-key": "config", open: true },
      h("summary", {}, h("strong", {}, count(problems.length, "problem in the project files", "problems in the project files"))),
      h("ul", {}, problems.map((one) => h("li", {}, h("code", {}, `${one.file}${one.line ? `:${one.line}` : ""}`),
        one.field ? [" ", h("code", {}, one.field)] : "", `: ${one.message}`)))));
  }
  const remotes = checks.remotes?.repositories ?? [];
  if (remotes.length) {
    list.push(h("details", { class: "notice is-bad", "data-key": "remotes" },
      h("summary", {}, h("strong", {}, count(remotes.length, "remote has not answered for an hour", "remotes have not answered for an hour"))),
      h("ul", {}, remotes.map((one) => h("li", {}, h("b", {}, one.repository), `: ${one.error}`)))));
  }
  return list;
}
