// Making elements. Text only ever becomes text nodes, so nothing that comes from the network can be read as markup.

// el("button", { class: "plain", onclick: f }, "Text", child, …); null children and attributes are left out.
export function el(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

// The same for the drawing parts of SVG.
export function svg(tag, props, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...shown(children));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

export function replace(node, ...children) {
  node.replaceChildren(...shown(children));
}

// Writes text only where it changed, so that a selection and a screen reader are left in peace.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setClass(node, name) {
  if (node.getAttribute("class") !== name) node.setAttribute("class", name);
}

function shown(children) {
  return children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false);
}
