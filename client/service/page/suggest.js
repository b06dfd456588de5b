// Suggestions while somebody types: the editable combobox with list autocomplete of the ARIA
// Authoring Practices. Focus stays in the input; aria-activedescendant says which option is meant.

import { element } from "./draw.js";
import { suggest } from "./service.js";
import { locale, say } from "./words.js";

const PAUSE_MS = 120;  // between two letters of somebody who types quickly

export function suggestions({ input, list, status, onpick }) {
  let options = [];
  let active = -1;
  let timer = 0;
  let asking = new AbortController();

  function close() {
    clearTimeout(timer);
    asking.abort();
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    activate(-1);
  }

  function activate(index) {
    active = index;
    options.forEach((option, at) => option.setAttribute("aria-selected", String(at === index)));
    if (index < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", options[index].id);
    options[index].scrollIntoView({ block: "nearest" });
  }

  function show(found, typed) {
    options = found.map(({ text, kind }, at) => element("li", {
      id: `suggestion-${at}`, role: "option", "aria-selected": "false", lang: locale, "data-text": text,
      onmousedown: (event) => event.preventDefault(),  // focus stays in the input
      onclick: () => pick(at),
    }, element("span", { class: "text" }, emphasized(text, typed)), say(`kind_${kind}`) ? element("span", { class: "kind" }, say(`kind_${kind}`)) : null));
    list.replaceChildren(...options);
    list.hidden = options.length === 0;
    input.setAttribute("aria-expanded", String(options.length > 0));
    activate(-1);
    if (options.length) status(say("num_suggestions", { n: options.length }));
  }

  async function ask() {
    asking.abort();
    const mine = asking = new AbortController();
    const typed = input.value;
    if (!typed.trim()) return close();
    try {
      const { suggestions: found } = await suggest(typed, { signal: mine.signal });
      if (!mine.signal.aborted && document.activeElement === input) show(found, typed);
    } catch { /* a search without suggestions is a search all the same */ }
  }

  function pick(index) {
    input.value = options[index].dataset.text;
    close();
    onpick();
  }

  function move(step) {
    const places = options.length + 1;  // one of them is the input itself
    activate((active + 1 + step + places) % places - 1);
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    asking.abort();
    activate(-1);
    timer = setTimeout(ask, PAUSE_MS);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const open = !list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (open) move(event.key === "ArrowDown" ? 1 : -1);
      else if (event.key === "ArrowDown") ask();
    } else if (event.key === "Escape" && open) {
      event.preventDefault();  // a second one clears the input, as browsers do in a search field
      close();
    } else if (event.key === "Enter" && open && active >= 0) {
      event.preventDefault();
      pick(active);
    }
  });
  return { close };
}

/** What was typed stays plain, at the start of any word; what the suggestion adds stands out. */
function emphasized(text, typed) {
  const known = typed.trim().toLocaleLowerCase(locale);
  const at = ` ${text.toLocaleLowerCase(locale)}`.indexOf(` ${known}`);
  if (!known || at < 0) return element("b", {}, text);
  const bold = (part) => (part ? element("b", {}, part) : null);
  return [bold(text.slice(0, at)), text.slice(at, at + known.length), bold(text.slice(at + known.length))];
}
