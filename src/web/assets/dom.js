// Builds elements, and brings the page to what they say. Whatever comes from the API is put in as text.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `tag.class`, its attributes if it has any, and children: nodes, or what is put in as text. */
export const h = (tag, ...rest) => fill(document.createElement(tag.split(".")[0]), tag, rest);

/** The same of a drawing. */
export const svg = (tag, ...rest) => fill(document.createElementNS(SVG, tag.split(".")[0]), tag, rest);

const isNothing = (value) => value === null || value === undefined || typeof value === "boolean";

function fill(element, tag, rest) {
  const attributes = rest[0]?.constructor === Object ? rest.shift() : {};
  const kinds = tag.split(".").slice(1).join(" ");
  if (kinds) element.setAttribute("class", kinds);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (!isNothing(value)) element.setAttribute(name, value);
  }
  element.append(...rest.flat(Infinity).filter((child) => !isNothing(child)));
  return element;
}

/**
 * Makes the children of `element` those given. What is there already stays, so that focus, selection and scrolling do:
 * elements are the same by `data-key`, the others by their place. What lies in one with `data-keep` is somebody else's.
 */
export function show(element, ...children) {
  patchChildren(element, h("div", children));
}

const keyOf = (node) => node.getAttribute?.("data-key") ?? null;

function patchChildren(old, fresh) {
  const wanted = new Set([...fresh.children].map(keyOf));
  const known = new Map();
  for (const child of [...old.children]) {
    const key = keyOf(child);
    if (key !== null && !wanted.has(key)) child.remove();
    else if (key !== null) known.set(key, child);
  }
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const key = keyOf(child);
    const same = key !== null ? known.get(key) : at && keyOf(at) === null ? at : null;
    if (same?.nodeName !== child.nodeName) {
      old.insertBefore(child, at);
      continue;
    }
    if (same === at) at = at.nextSibling;
    else old.insertBefore(same, at);
    patch(same, child);
  }
  // What is left has no place any more.
  while (at !== null) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function patch(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    // What a person has closed stays closed.
    if (old.getAttribute(name) !== value && name !== "open") old.setAttribute(name, value);
  }
  if (!fresh.hasAttribute("data-keep")) patchChildren(old, fresh);
}
