// Making elements. Text only ever becomes text nodes, so nothing that a run holds can be read as markup.

// el("button", { class: "tab", onclick: f, "aria-pressed": "true" }, "Text", child, …); null children and attributes are left out.
export function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, rule] of Object.entries(value)) node.style.setProperty(name, rule);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

export function replace(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
}

// A row of buttons of which one is on. `options` are [value, label]; `choose` is told the value.
export function choice(label, options, value, choose) {
  return el("div", { class: "choice", role: "group", "aria-label": label },
    options.map(([option, text, title]) => el("button", {
      type: "button", "aria-pressed": String(option === value), title: title ?? null, onclick: () => choose(option),
    }, text)));
}

export function select(label, options, value, choose) {
  return el("label", { class: "select" }, el("span", { class: "sr" }, label),
    el("select", { "aria-label": label, onchange: event => choose(event.target.value) },
      options.map(([option, text]) => el("option", { value: option, selected: String(option) === String(value) }, text))));
}
