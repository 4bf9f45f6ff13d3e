// The views: each loads what it needs beyond the list of repositories.

import { get, getPage, repositoryPath } from "./api.js";
import { chart } from "./chart.js";
import { h } from "./dom.js";
import { state } from "./live.js";
import { LogPane } from "./logs.js";
import { ago, containerStatus, deploymentStatus, deploymentWord, duration, repositoryStatus, secondsSince, short, until } from "./text.js";

const PAGE_DEPLOYMENTS = 25;
const CONTAINER_LINES = 500;
const VIEWER_REASON = "You may look here; this takes the login of Shiparr_AUTH_USERNAME.";

const { access, configPath } = document.documentElement.dataset;
const mayChange = access === "full";
/** The project that the page was opened for, if for one. */
const onlyProject = new URLSearchParams(location.search).get("project");

/** An address of this page: with a base in the document, a bare fragment leads there. */
export const to = (route) => `${location.pathname}${location.search}#${route}`;
const link = (route, text, label) => h("a", { href: to(route), "aria-label": label }, text);
const deploymentRoute = (id) => `/deployments/${id}`;
const routeOf = ({ project, name }) => `/repositories/${project}/${name}`;
const nameOf = ({ project, name }) => `${project}/${name}`;
const targetOf = ({ project, repository }) => ({ project, name: repository });
const isGoingOn = ({ status }) => status === "running" || status === "pending";
const repositories = () => [...state.repositories.values()].filter(({ project }) => !onlyProject || project === onlyProject);
const repositoryNamed = (project, name) => [...state.repositories.values()].find((one) => one.project === project && one.name === name);

const title = (...text) => h("h1", { tabindex: -1 }, text);
const head = (...rest) => h("div.head", rest);
const section = (id, text, ...rest) => h("section", { "aria-labelledby": id, "data-key": id }, h("h2", { id }, text), rest);
const loading = () => h("p.quiet", "Loading…");
/** A line above the rest, in red where it is a problem. */
const notice = (isProblem, ...line) => h(isProblem ? "p.notice.is-bad" : "p.notice", line);
const trouble = (error) => error && h("p.notice.is-bad", { role: "alert" }, error.message);
const crumbs = (target) => h("nav.crumbs", { "aria-label": "Breadcrumbs" }, link("/", "Repositories"), target && [" / ", link(routeOf(target), nameOf(target))]);
const facts = (...pairs) => h("dl", pairs.filter(Boolean).map(([name, ...value]) => h("div", h("dt", name), h("dd", value))));
const commitOf = (hash, subject) => h("div.commit", h("code", short(hash)), subject && h("span", { title: subject }, subject));

/** Roles are written out: tables keep them where they are laid out as cards. */
const table = (kind, label, columns, rows) =>
  h(`table.${kind}`, { role: "table", "aria-label": label },
    h("thead", h("tr", { role: "row" }, columns.map((text) => h("th", { role: "columnheader" }, text)))),
    h("tbody", rows));
const row = (key, ...cells) => h("tr", { role: "row", "data-key": key }, cells);
const cell = (kind, ...content) => h(`td.c-${kind}`, { role: "cell" }, content);

/** A button that opens a question; where that may not be asked, it says why. */
const button = (text, action, about, reason, data) =>
  h("button", {
    "data-action": action, "data-key": action, "aria-label": about,
    "aria-disabled": reason ? "true" : null, title: reason, ...data,
  }, text);

function deployButton(repository, commit) {
  const reason = !mayChange ? VIEWER_REASON : repository.orphaned ? "No project file names it any more." : null;
  const [text, what] = commit ? ["Deploy this commit…", `${short(commit)} of `] : ["Deploy…", ""];
  return button(text, "deploy", `Deploy ${what}${nameOf(repository)}`, reason, { "data-repository": repository.id, "data-commit": commit });
}

const cancelButton = (deployment) =>
  button("Cancel…", "cancel", `Cancel the deployment of ${nameOf(targetOf(deployment))}`, mayChange ? null : VIEWER_REASON, { "data-deployment": deployment.id });

function actionOf(repository) {
  const last = repository.last_deployment;
  return last && isGoingOn(last) ? cancelButton(last) : deployButton(repository);
}

/** The subject of what is deployed, where the last deployment is the one that did it. */
function deployedOf({ last_commit_hash: hash, last_deployment: last }) {
  return commitOf(hash, last?.commit_hash === hash ? last.commit_subject : null);
}

/** What goes on with a repository, or is wrong with it: a kind and a line each. */
function newsOf(repository) {
  const { last_deployment: last, last_error: error, status, observed_commit: seen } = repository;
  const about = last && link(deploymentRoute(last.id), `Deployment #${last.id}`);
  const news = [];
  if (last?.status === "failed") news.push(["problem", about, " failed: ", last.error]);
  if (last && isGoingOn(last)) {
    const what = last.commit_hash ? [" of ", h("code", short(last.commit_hash)), ` ${last.commit_subject ?? ""}`] : "";
    news.push(["quiet", about, what, last.error && `: ${last.error}`]);
  }
  if (status === "waiting") news.push(["quiet", h("code", short(seen)), " waits until somebody deploys it."]);
  if (error) news.push(["problem", "Check failed: ", error]);
  return news;
}

function triggerOf({ trigger, attempt, actor }) {
  return `${trigger}${attempt > 1 ? `, attempt ${attempt}` : ""}${actor ? ` by ${actor}` : ""}`;
}

/** How long a deployment took, or has been going on. */
function took({ status, started_at: started, duration_seconds: seconds }) {
  return duration(status === "running" && started ? Math.max(0, secondsSince(started)) : seconds);
}

function deploymentsTable(label, list) {
  const rows = list.map((one) =>
    row(`deployment-${one.id}`,
      cell("status", deploymentStatus(one.status)),
      cell("id", link(deploymentRoute(one.id), `#${one.id}`, `Deployment #${one.id}, ${deploymentWord(one.status)}`)),
      cell("commit", commitOf(one.commit_hash, one.commit_subject), one.error && h(one.status === "failed" ? "div.problem" : "div.quiet", one.error)),
      cell("trigger", triggerOf(one)),
      cell("age", ago(one.started_at ?? one.created_at)),
      cell("took", took(one))));
  return table("deployments", label, ["Status", "Deployment", "Commit", "Trigger", "Started", "Duration"], rows);
}

// ---- All repositories

const KINDS = {
  problems: ["Problems", (one) => !one.orphaned && (one.status === "failed" || one.last_error !== null)],
  deploying: ["Deploying", isGoingOn],
  waiting: ["Waiting", ({ status }) => status === "waiting"],
  orphaned: ["Orphaned", ({ orphaned }) => orphaned],
};

export class Overview {
  constructor(search) {
    const query = new URLSearchParams(search);
    this.words = query.get("q") ?? "";
    this.kind = KINDS[query.get("show")] ? query.get("show") : "";
  }

  title() {
    const failed = repositories().filter(KINDS.problems[1]).length;
    return `${failed ? `(${failed}) ` : ""}${onlyProject ?? "Repositories"}`;
  }

  /** Takes what was typed or chosen; answers the address of it. */
  filter(words, kind) {
    this.words = words;
    this.kind = kind;
    const query = new URLSearchParams(Object.entries({ q: words, show: kind }).filter(([, value]) => value));
    return `/${words || kind ? `?${query}` : ""}`;
  }

  render() {
    if (!state.isLoaded) return loading();
    const all = repositories();
    const projects = state.projects.filter(({ name }) => !onlyProject || name === onlyProject);
    const heading = title(onlyProject ?? "Repositories");
    if (all.length === 0) return [head(heading), empty(projects)];
    const found = all.filter((one) => this.#fits(one));
    const isFiltered = this.words || this.kind;
    return [
      head(heading, this.#filterBar(all)),
      h("p.unseen", { role: "status" }, isFiltered && `${found.length} of ${all.length} shown`),
      projects.map((project) => {
        const own = found.filter((one) => one.project === project.name);
        if (own.length === 0 && isFiltered) return null;
        return section(`project-${project.name}`, [project.name, project.description && h("small", project.description)],
          own.length ? repositoriesTable(project, own) : h("p.quiet", "This project has no repositories."));
      }),
      found.length === 0 && h("p.quiet", { "data-key": "nothing" }, "No repository fits."),
    ];
  }

  #fits(one) {
    const { project, name, branch, git_url: url, status, last_commit_hash: hash, last_deployment: last } = one;
    const text = [`${project}/${name}`, branch, url, status, hash, last?.commit_subject].join(" ").toLowerCase();
    return this.words.toLowerCase().split(/\s+/).every((word) => text.includes(word)) && (!this.kind || KINDS[this.kind][1](one));
  }

  #filterBar(all) {
    const chip = ([kind, label, number]) =>
      h("button.chip", { "data-key": kind, "data-action": "show-kind", "data-kind": kind, "aria-pressed": String(this.kind === kind) },
        label, " ", h("b", number));
    const chips = Object.entries(KINDS)
      .map(([kind, [label, test]]) => [kind, label, all.filter(test).length])
      .filter(([kind, , number]) => number > 0 || kind === this.kind);
    return h("div.filter", { role: "search" },
      h("div.chips", { role: "group", "aria-label": "Which repositories" }, chip(["", "All", all.length]), chips.map(chip)),
      h("input", { type: "search", id: "filter", value: this.words, placeholder: "Filter", "aria-label": "Filter repositories", autocomplete: "off" }));
  }
}

function repositoriesTable({ name }, list) {
  const rows = list.map((one) => {
    const last = one.last_deployment;
    return row(`repository-${one.id}`,
      cell("status", repositoryStatus(one)),
      cell("name", link(routeOf(one), one.name)),
      cell("commit", deployedOf(one), newsOf(one).map(([kind, ...line]) => h(`div.${kind}`, line))),
      cell("age", h("span.label", "Last run "), ago(last?.finished_at ?? last?.started_at)),
      cell("next", h("span.label", "Next check "), one.orphaned ? "–" : until(one.next_check_at)),
      cell("action", actionOf(one)));
  });
  return table("repositories", `Repositories of ${name}`,
    ["Status", "Repository", "Deployed commit", "Last deployment", "Next check", h("span.unseen", "Action")], rows);
}

const SAMPLE = "project: homelab\n\nrepositories:\n  media:\n    url: github.com/you/media.git\n";

function empty(projects) {
  if (onlyProject && projects.length === 0) {
    return h("div.empty", h("p", `There is no project ${onlyProject}.`), h("p", h("a", { href: "./" }, "All projects")));
  }
  return h("div.empty", h("h2", projects.length ? "No repositories yet" : "No projects yet"),
    h("p", "A project is a file that names the Git repositories of your stacks. Write one into ", h("code", configPath),
      ", for example ", h("code", "homelab.yaml"), ":"),
    h("pre", { tabindex: 0 }, SAMPLE),
    h("p", "It is read at once. ", h("code", "shiparr check"),
      " says beforehand what is wrong with it. A private repository needs a token too."));
}

// ---- One repository

export class RepositoryView {
  #deployments = null;
  #before = null;
  #problem = null;
  #step = null;
  /** A list, or why there is none. */
  #containers = null;

  constructor(project, name) {
    this.project = project;
    this.name = name;
  }

  title = () => nameOf(this);

  async load() {
    try {
      const { items, before } = await this.#page("");
      // Older ones that were asked for stay.
      const older = (this.#deployments ?? []).filter(({ id }) => id < items.at(-1)?.id);
      if (!older.length) this.#before = before;
      this.#deployments = [...items, ...older];
      this.#problem = null;
    } catch (error) {
      this.#problem = error;
    }
    await this.#lookAtContainers();
  }

  #page = (rest) => getPage(`${repositoryPath(this)}/deployments?limit=${PAGE_DEPLOYMENTS}${rest}`);

  async more() {
    const asked = this.#before;
    const { items, before } = await this.#page(`&${asked}`);
    // Somebody who clicks twice asks once.
    if (this.#before !== asked) return;
    this.#deployments.push(...items);
    this.#before = before;
  }

  /** Takes a deployment that changed. */
  async take(deployment) {
    const list = this.#deployments;
    if (!list || deployment.project !== this.project || deployment.repository !== this.name) return;
    const at = list.findIndex(({ id }) => id === deployment.id);
    if (at >= 0) list[at] = deployment;
    else list.unshift(deployment);
    await this.#lookAtContainers();
  }

  /** Once for each step of a deployment: Docker takes its time to answer. */
  async #lookAtContainers() {
    const [newest] = this.#deployments ?? [];
    const step = `${newest?.id} ${newest?.status}`;
    if (step === this.#step) return;
    this.#step = step;
    await this.loadContainers();
  }

  async loadContainers() {
    this.#containers = await get(`${repositoryPath(this)}/containers`).catch((error) => error);
  }

  render() {
    const one = repositoryNamed(this.project, this.name);
    if (!one) return state.isLoaded ? [crumbs(), title(`There is no repository ${this.title()}`)] : loading();
    const bars = chart(this.#deployments ?? [], (id) => to(deploymentRoute(id)));
    return [
      crumbs(),
      head(title(h("small", `${one.project}/`), one.name), repositoryStatus(one), h("div.actions", actionOf(one))),
      one.orphaned && notice(false, "No project file names it any more. Its containers and files stay; ", h("code", "shiparr prune"), " forgets its records."),
      newsOf(one).map(([kind, ...line]) => notice(kind === "problem", line)),
      h("div.columns", h("div.panel", facts(
        ["Deployed", deployedOf(one)],
        ["Branch", h("code", one.branch), one.observed_commit !== one.last_commit_hash && one.observed_commit && [" at ", h("code", short(one.observed_commit))]],
        ["Remote", h("code", one.git_url)],
        ["Path in it", h("code", one.path)],
        ["Working tree", h("code", one.local_path)],
        ["Last check", ago(one.last_checked_at, "not yet")],
        ["Next check", one.orphaned ? "none" : [until(one.next_check_at), ` (every ${duration(one.check_interval)})`]])),
      bars && h("div.panel", bars)),
      section("containers", ["Containers", h("button.plain", { "data-action": "containers" }, "Look again")], this.#containersTable()),
      section("history", "Deployments", this.#history()),
    ];
  }

  #history() {
    const list = this.#deployments;
    return [
      trouble(this.#problem) ?? (list ? null : loading()),
      list?.length === 0 && h("p.quiet", "Nothing was deployed yet."),
      list?.length > 0 && deploymentsTable(`Deployments of ${this.title()}`, list),
      this.#before && h("button.more", { "data-action": "more" }, "Older deployments"),
    ];
  }

  #containersTable() {
    const list = this.#containers;
    if (list instanceof Error) return trouble(list);
    if (!list) return loading();
    if (!list.length) return h("p.quiet", "The stack has no containers.");
    const rows = list.map((one) =>
      row(`container-${one.id}`,
        cell("status", containerStatus(one)),
        cell("name", h("b", one.service), h("div.quiet", one.name)),
        cell("image", h("code", one.image)),
        cell("age", h("span.label", "Started "), ago(one.started_at)),
        cell("action", mayChange && link(`${routeOf(this)}/containers/${one.name}`, "Log", `Log of ${one.name}`))));
    return table("containers", `Containers of ${this.title()}`, ["State", "Service", "Image", "Started", h("span.unseen", "Log")], rows);
  }
}

// ---- Logs

/** A view with a log at its end, which is not drawn again with the rest. */
class LogView {
  constructor(label, path, isStamped) {
    this.pane = new LogPane(label, path, isStamped);
    this.path = path;
  }

  place = () => h("div", { id: "log-place", "data-key": "log", "data-keep": true });
  leave = () => this.pane.stop();

  mounted() {
    const { element } = this.pane;
    if (!element.isConnected) document.getElementById("log-place")?.append(element);
    this.pane.start();
  }
}

export class DeploymentView extends LogView {
  deployment = null;
  #problem = null;

  constructor(digits) {
    const id = Number(digits);
    super(`Log of deployment ${id}`, `api/deployments/${id}/logs?follow=1`, true);
    this.id = id;
  }

  title() {
    const one = this.deployment;
    return one ? `${deploymentWord(one.status)}: ${nameOf(targetOf(one))} #${one.id}` : `Deployment ${this.id}`;
  }

  async load() {
    try {
      this.deployment = await get(`api/deployments/${this.id}`);
      this.#problem = null;
    } catch (error) {
      this.#problem = error;
    }
  }

  async take(deployment) {
    if (deployment.id === this.id) this.deployment = deployment;
  }

  render() {
    const one = this.deployment;
    if (!one) return this.#problem ? [crumbs(), title(this.title()), trouble(this.#problem)] : loading();
    const target = targetOf(one);
    const repository = repositoryNamed(one.project, one.repository);
    return [
      crumbs(target),
      head(title(h("small", "Deployment "), `#${one.id}`), deploymentStatus(one.status),
        h("div.actions", isGoingOn(one) ? cancelButton(one) : repository && one.commit_hash && deployButton(repository, one.commit_hash))),
      one.error && notice(one.status === "failed", one.error),
      h("div.panel.wide", facts(
        ["Trigger", triggerOf(one)],
        ["Commit", commitOf(one.commit_hash, one.commit_subject)],
        ["Started", ago(one.started_at, "not yet")],
        ["Author", one.commit_author ?? "–"],
        ["Duration", took(one)])),
      section("log", ["Log", h("a", { href: this.path }, "Plain text")], this.place()),
    ];
  }
}

export class ContainerView extends LogView {
  constructor(project, name, container) {
    super(`Log of ${container}`, `containers/${container}/logs?tail=${CONTAINER_LINES}&follow=1`, false);
    this.target = { project, name };
    this.container = container;
  }

  title = () => `Log of ${this.container}`;

  render() {
    return [
      crumbs(this.target),
      head(title(h("small", "Log of "), this.container)),
      this.place(),
    ];
  }
}

export class Nowhere {
  title = () => "Not found";
  render = () => [crumbs(), title("There is nothing at this address")];
}
