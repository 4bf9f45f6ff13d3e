// Asks the API, at addresses relative to the page's, so that they hold below a path too.

const LIMIT_MILLISECONDS = 30_000;

/** Why an answer is no answer, in the words of the API; `status` is 0 where nobody answered, `answer` its JSON. */
export class ApiError extends Error {
  constructor(status, message, answer) {
    super(message);
    Object.assign(this, { status, answer });
  }
}

/** The JSON of a GET. */
export async function get(path) {
  return (await ask(path)).json();
}

/** A page of a list: its items, and the address of the next one. */
export async function getPage(path) {
  const response = await ask(path);
  const next = /[?&](before=\d+)[^>]*>; rel="next"/.exec(response.headers.get("Link") ?? "");
  return { items: await response.json(), before: next?.[1] };
}

/** The answer to a POST. */
export async function post(path, body) {
  const options = { method: "POST" };
  if (body) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  return (await ask(path, options)).json();
}

/** The lines of a text that may go on coming; `take` gets them in groups. Ends when the text does. */
export async function stream(path, take, signal) {
  const response = await reach(path, { headers: { Accept: "text/plain" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new ApiError(0, "the log broke off");
    });
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    if (done && rest) lines.push(rest);
    if (lines.length) take(lines);
    if (done) return;
  }
}

export const repositoryPath = ({ project, name }) => `api/projects/${project}/repositories/${name}`;

const ask = (path, options) => reach(path, { ...options, signal: AbortSignal.timeout(LIMIT_MILLISECONDS) });

/** Without the user and password that the address of the page may hold: browsers refuse to fetch such. */
export function addressOf(path) {
  const url = new URL(path, document.baseURI);
  url.username = url.password = "";
  return url.href;
}

async function reach(path, options) {
  try {
    return await refused(await fetch(addressOf(path), options));
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError(0, error.name === "TimeoutError" ? "Shiparr takes too long to answer" : "Shiparr does not answer");
  }
}

async function refused(response) {
  if (response.ok) return response;
  // A proxy's own page is no JSON.
  const answer = await response.json().catch(() => ({}));
  throw new ApiError(response.status, answer.message ?? `the answer is ${response.status} ${response.statusText}`, answer);
}
