// The questions that are asked before something is changed.

import { post, repositoryPath } from "./api.js";
import { h } from "./dom.js";
import { short } from "./text.js";

/** Asks what to deploy and how; `done` gets the id of the deployment. */
export function askDeploy(repository, commit, done) {
  const { project, name, branch } = repository;
  const error = errorLine();
  const option = (field, label, text) =>
    h("label", { class: "option" }, h("input", { type: "checkbox", name: field, "aria-describedby": `about-${field}` }),
      h("span", {}, h("b", {}, label), h("small", { id: `about-${field}` }, text)));
  const form = h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, `Deploy ${project}/${name}?`),
    h("p", {}, `Fetches ${branch}, checks it out and runs docker compose up, also when that commit is deployed already.`,
      repository.last_commit_hash && [" Deployed now: ", h("code", {}, short(repository.last_commit_hash)), "."]),
    h("fieldset", {}, h("legend", {}, "Options"),
      option("pull", "Pull", "Pull images even where they are there."),
      option("recreate", "Recreate", "Make containers anew even where nothing changed."),
      option("adopt", "Adopt", "Go on although containers, volumes or a clone are there that this repository did not make. Read the refusal first: what it names becomes this stack's.")),
    h("label", { class: "field" }, h("span", {}, "Commit"),
      h("input", {
        name: "commit", value: commit ?? "", placeholder: `the tip of ${branch}`, pattern: "[0-9a-fA-F]{7,64}",
        title: "7 to 64 hexadecimal digits", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "aria-describedby": "about-commit",
      }),
      h("small", { id: "about-commit" }, "An earlier commit of the branch, by 7 digits of its hash or more. What the branch holds now then counts as handled until it moves.")),
    error, buttons("Deploy", "go"));
  open(form, error, async () => {
    const asked = {};
    for (const box of form.querySelectorAll("input[type=checkbox]:checked")) asked[box.name] = true;
    const wanted = form.elements.commit.value.trim();
    if (wanted) asked.commit = wanted;
    const answer = await post(`${repositoryPath(repository)}/deploy`, asked);
    return () => done(answer.deployment_id);
  });
}

/** Asks whether a deployment should end; `done` is called when it was told to. */
export function askCancel(deployment, done) {
  const error = errorLine();
  const what = deployment.status === "running"
    ? "It is ended as if it were past its time limit. What its up had begun is brought to an end, so that nothing stays stopped."
    : "It has not begun, and will not.";
  const form = h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, `Cancel deployment ${deployment.id} of ${deployment.project}/${deployment.repository}?`),
    h("p", {}, what), error, buttons("Cancel the deployment", "stop", "Let it go on"));
  open(form, error, async () => {
    await post(`api/deployments/${deployment.id}/cancel`);
    return done;
  });
}

const errorLine = () => h("p", { class: "error", role: "alert" });

const buttons = (text, kind, otherwise = "Back") =>
  h("div", { class: "buttons" },
    h("button", { type: "button", value: "back" }, otherwise),
    h("button", { type: "submit", class: kind }, text));

/** Shows a form until it is sent with success, or left. The browser puts the focus back where it was. */
function open(form, error, send) {
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  const submit = form.querySelector("[type=submit]");
  let isSending = false;
  let after = null;
  form.querySelector("[value=back]").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (isSending) return;
    isSending = true;
    submit.setAttribute("aria-disabled", "true");
    error.textContent = "";
    try {
      after = await send();
      dialog.close();
    } catch (problem) {
      error.textContent = problem.message;
    }
    isSending = false;
    submit.removeAttribute("aria-disabled");
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    after?.();
  });
  document.body.append(dialog);
  dialog.showModal();
}
