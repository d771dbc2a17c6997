// Blocks without a state of their own: headline figures, text, code, verdicts.

function figuresElement({ items }) {
  return element("dl", { class: "figures" }, ...items.map(([label, value, note]) => (
    element("div", {}, element("dt", {}, label), element("dd", { class: "value" }, value),
      note ? element("dd", { class: "note" }, note) : null))));
}

function textElement({ paragraphs }) {
  const parts = paragraphs.split(/\n\s*\n/).filter((part) => part.trim() !== "");
  return element("div", { class: "text" }, ...parts.map((part) => element("p", {}, part.trim())));
}

function codeElement({ title, text, language }) {
  return element("section", { class: "code" },
    element("div", { class: "code-top" },
      title ? element("h3", {}, title) : null,
      language ? element("span", { class: "language" }, language) : null, copyButton(text)),
    element("pre", { tabindex: 0, role: "region", "aria-label": title || "Code" },
      element("code", {}, text)));
}

const VERDICT_SIGNS = {
  supported: "\u2713", contradicted: "\u2717", undecided: "?", "not run": "\u2013",
};

function verdictElement({ claim, verdict, figures, threshold, command, note }) {
  const row = (label, value) => (value
    ? element("div", {}, element("dt", {}, label), element("dd", {}, value)) : null);
  return element("article", { class: `verdict ${verdict.replace(" ", "-")}` },
    element("p", { class: "word" },
      element("span", { "aria-hidden": "true" }, VERDICT_SIGNS[verdict]), verdict),
    element("h3", {}, claim),
    element("dl", {}, row("Figures", figures), row("Threshold", threshold)),
    note ? element("p", { class: "note" }, note) : null,
    command ? element("div", { class: "command" },
      element("pre", { tabindex: 0, role: "region", "aria-label": "Command" },
        element("code", {}, command)), copyButton(command)) : null);
}
