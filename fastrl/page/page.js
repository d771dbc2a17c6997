// The page itself: sections, the bar at the top with its switches, the theme, printing.

const BUILDERS = {
  Plot: plotElement, Table: tableElement, Figures: figuresElement, Samples: samplesElement,
  Code: codeElement, Text: textElement, Verdict: verdictElement,
};
// neighbours of these kinds stand side by side where there is room
const SIDE_BY_SIDE = { Plot: "plots", Verdict: "verdicts" };

function sectionElement(section) {
  const parts = [];
  let row = null;
  for (const block of section.blocks) {
    const kind = SIDE_BY_SIDE[block.kind];
    if (!kind) {
      row = null;
      parts.push(BUILDERS[block.kind](block));
      continue;
    }
    if (row === null || row.kind !== kind) {
      row = { kind, node: element("div", { class: kind }) };
      parts.push(row.node);
    }
    row.node.append(BUILDERS[block.kind](block));
  }
  return element("section", { id: section.anchor, class: "part" },
    element("h2", {}, section.title), ...parts);
}

function groupSwitches() {
  const buttons = [...groupLabels].map(([group, label]) => {
    const button = element("button", { type: "button", "aria-pressed": "true" },
      groupSwatch(group), element("span", {}, label));
    button.addEventListener("click", () => {
      const hides = !hiddenGroups.has(group);
      if (hides) hiddenGroups.add(group);
      else hiddenGroups.delete(group);
      button.setAttribute("aria-pressed", String(!hides));
      for (const listener of groupListeners) listener();
    });
    return button;
  });
  const attributes = { class: "groups", role: "group", "aria-label": "Show or hide on the whole page" };
  return buttons.length > 0 ? element("div", attributes, ...buttons) : null;
}

function contents(sections) {
  const links = sections.map(({ anchor, title }) => (
    element("li", {}, element("a", { href: `#${anchor}` }, title))));
  const details = element("details", { class: "contents" }, element("summary", {}, "Contents"),
    element("nav", { "aria-label": "Contents" }, element("ol", {}, ...links)));
  const wide = matchMedia("(min-width: 1200px)");
  const place = () => (details.open = wide.matches);
  place();
  wide.addEventListener("change", place);
  details.addEventListener("click", (event) => {
    if (event.target.closest("a") && !wide.matches) details.open = false;
  });
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || wide.matches) return;
    details.open = false;
    details.firstChild.focus();
  });
  return details;
}

// Marks the section being read in the contents.
function followReading(details) {
  const links = new Map([...details.querySelectorAll("a")].map((a) => [a.hash.slice(1), a]));
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const link = links.get(target.id);
      if (isIntersecting) link?.setAttribute("aria-current", "true");
      else link?.removeAttribute("aria-current");
    }
  }, { rootMargin: "-30% 0px -69% 0px" });
  for (const part of document.querySelectorAll(".part")) observer.observe(part);
}

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  readTheme();
  for (const { u } of plots) u?.redraw(false, false);
  for (const listener of themeListeners) listener(name);
}

const currentTheme = () => chosenTheme ?? (dark.matches ? "dark" : "light");

function themeSwitch() {
  const icon = drawn("svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" },
    drawn("path", { d: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.6v10.8a5.4 5.4 0 0 1 0-10.8Z" }));
  const button = element("button", { type: "button", class: "theme", "aria-label": "Dark theme" }, icon);
  button.addEventListener("click", () => {
    chosenTheme = currentTheme() === "dark" ? "light" : "dark";
    setTheme(chosenTheme);
  });
  themeListeners.push((name) => button.setAttribute("aria-pressed", String(name === "dark")));
  dark.addEventListener("change", () => setTheme(currentTheme()));
  return button;
}

// Paper is white, and narrower than most screens.
function preparePrinting() {
  addEventListener("beforeprint", () => {
    printWidth = 660;
    setTheme("light");
    plots.forEach(resize);
  });
  addEventListener("afterprint", () => {
    printWidth = null;
    setTheme(currentTheme());
    plots.forEach(resize);
  });
}

function start() {
  const switches = groupSwitches();
  const toc = contents(page.sections);
  const title = element("a", { class: "name", href: "#top" }, page.title);
  document.body.append(
    element("a", { class: "skip", href: "#content" }, "Skip to the content"),
    element("div", { class: "bar", role: "banner" }, toc, title, switches, themeSwitch()),
    element("main", { id: "content" },
      element("header", { id: "top" }, element("h1", {}, page.title),
        page.subtitle ? element("p", { class: "subtitle" }, page.subtitle) : null),
      ...page.sections.map(sectionElement),
      page.footer ? element("footer", {}, page.footer) : null));
  groupListeners.push(() => plots.forEach(refresh));
  setTheme(currentTheme());
  plots.forEach(startPlot);
  document.addEventListener("touchstart", (event) => {
    for (const state of plots) if (!state.area.contains(event.target)) hideTip(state);
  }, { passive: true });
  followReading(toc);
  preparePrinting();
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  document.documentElement.dataset.ready = "true";
}

start();
