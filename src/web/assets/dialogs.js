// The questions that are asked before something is changed.

import { post, repositoryPath } from "./api.js";
import { h } from "./dom.js";
import { short } from "./text.js";

/** Asks what to deploy and how; `done` gets the id of the deployment. */
export function askDeploy(repository, commit, done) {
  const { project, name, branch } = repository;
  const option = (field, label, text) =>
    h("label.option", h("input", { type: "checkbox", name: field }), h("span", h("b", label), " ", h("small", text)));
  ask(`Deploy ${project}/${name}?`, "Deploy", "go", "Back", [
    h("p", `Fetches ${branch} and runs docker compose up, also when its commit is deployed already.`,
      repository.last_commit_hash && [" Deployed now: ", h("code", short(repository.last_commit_hash)), "."]),
    h("fieldset", h("legend", "Options"),
      option("pull", "Pull", "Pull images even where they are there."),
      option("recreate", "Recreate", "Make containers anew even where nothing changed."),
      option("adopt", "Adopt", "Take over containers, volumes or a clone that this repository did not make.")),
    h("label.field", h("b", "Commit"),
      h("input", {
        name: "commit", value: commit, placeholder: `the tip of ${branch}`, pattern: "[0-9a-fA-F]{7,64}", title: "7 to 64 hexadecimal digits",
        autocomplete: "off",
      }),
      h("small", "An earlier one of the branch, by 7 digits of its hash or more. The tip then counts as handled until it moves.")),
  ], async (form) => {
    const asked = {};
    for (const box of form.querySelectorAll(":checked")) asked[box.name] = true;
    const wanted = form.elements.commit.value.trim();
    if (wanted) asked.commit = wanted;
    const { deployment_id: id } = await post(`${repositoryPath(repository)}/deploy`, asked);
    return () => done(id);
  });
}

/** Asks whether a deployment should end; `done` is called when it was told to. */
export function askCancel(deployment, done) {
  const { id, project, repository, status } = deployment;
  const what = status === "running"
    ? "It is ended as if it were past its time limit; what was stopped in the middle is started again."
    : "It has not begun, and will not.";
  ask(`Cancel deployment ${id} of ${project}/${repository}?`, "Cancel the deployment", "stop", "Let it go on", [h("p", what)], async () => {
    await post(`api/deployments/${id}/cancel`);
    return done;
  });
}

/** Shows a form until it was sent with success, or left. The browser then puts the focus back where it was. */
function ask(title, yes, kind, no, content, send) {
  const error = h("p.error", { role: "alert" });
  const submit = h(`button.${kind}`, { type: "submit" }, yes);
  const back = h("button", { type: "button" }, no);
  const form = h("form", { method: "dialog" }, h("h2", { id: "question" }, title), content, error, h("div.buttons", back, submit));
  const dialog = h("dialog", { "aria-labelledby": "question" }, form);
  let after = null;
  back.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (submit.hasAttribute("aria-disabled")) return;
    submit.setAttribute("aria-disabled", "true");
    error.textContent = "";
    try {
      after = await send(form);
      dialog.close();
    } catch (problem) {
      error.textContent = problem.message;
    }
    submit.removeAttribute("aria-disabled");
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    after?.();
  });
  document.body.append(dialog);
  dialog.showModal();
}
