// Sample completions, a column a policy, with filters by text, tag and verdicts.

const PROMPTS_AT_ONCE = 20;
const PATTERNS = {
  all: "any verdicts", differ: "policies differ", right: "all right", wrong: "all wrong",
};

function matchesPattern(responses, pattern) {
  if (pattern === "all") return true;
  const graded = responses.map((r) => r.correct).filter((correct) => correct !== null);
  if (graded.length === 0) return false;
  const right = graded.filter(Boolean).length;
  if (pattern === "right") return right === graded.length;
  return pattern === "wrong" ? right === 0 : right > 0 && right < graded.length;
}

function verdictMark(correct) {
  if (correct === null) return element("span", { class: "mark" }, "\u2013 not graded");
  return correct ? element("span", { class: "mark right" }, "\u2713 right")
    : element("span", { class: "mark wrong" }, "\u2717 wrong");
}

function responseElement(response) {
  const { text, answer, correct, reason, note } = response;
  return element("div", { class: "response" },
    element("p", { class: "ruling" }, verdictMark(correct),
      answer === null ? element("span", { class: "none" }, "no answer found")
        : element("span", {}, "answer ", element("code", {}, answer))),
    reason ? element("p", { class: "note" }, reason) : null,
    element("pre", { tabindex: 0, role: "region", "aria-label": `Completion of ${response.policy}` },
      text),
    note ? element("p", { class: "note" }, note) : null);
}

function promptElement(prompt, responses) {
  const policies = [...new Set(responses.map((r) => r.policy))];
  const columns = policies.map((policy) => {
    const own = responses.filter((r) => r.policy === policy);
    return element("section", { class: "policy" },
      element("h4", {}, own[0].group ? groupSwatch(own[0].group) : null, policy),
      ...own.map(responseElement));
  });
  return element("article", { class: "sample" },
    element("pre", { class: "prompt", tabindex: 0, role: "region", "aria-label": "Prompt" },
      prompt.prompt),
    element("p", { class: "facts" },
      element("span", {}, "right answer ", element("code", {}, prompt.gold)),
      ...prompt.tags.map((tag) => element("span", { class: "tag" }, tag))),
    element("div", { class: "policies" }, ...columns));
}

function samplesElement(block) {
  const tags = [...new Set(block.prompts.flatMap((p) => p.tags))].sort(words.compare);
  const texts = block.prompts.map((p) => (
    [p.prompt, ...p.responses.map((r) => r.text)].join("\n").toLowerCase()));
  const search = element("input", { type: "search", placeholder: "words of a prompt or completion" });
  const tag = element("select", {}, element("option", { value: "" }, "any tag"),
    ...tags.map((name, i) => element("option", { value: String(i + 1) }, name)));
  const pattern = element("select", {}, ...Object.entries(PATTERNS).map(([value, label]) => (
    element("option", { value }, label))));
  const count = element("p", { class: "count", role: "status" });
  const list = element("div", { class: "sample-list" });
  const more = element("button", { type: "button", class: "more" });
  let limit = PROMPTS_AT_ONCE;

  const visible = (prompt) => prompt.responses.filter((r) => !hiddenGroups.has(r.group));

  function fill() {
    const wanted = search.value.trim().toLowerCase();
    const wantedTag = tag.value === "" ? null : tags[Number(tag.value) - 1];
    const found = block.prompts.filter((prompt, i) => (
      texts[i].includes(wanted) && (wantedTag === null || prompt.tags.includes(wantedTag)) &&
      matchesPattern(visible(prompt), pattern.value)));
    list.replaceChildren(
      ...found.slice(0, limit).map((prompt) => promptElement(prompt, visible(prompt))));
    const left = found.length - limit;
    count.textContent = `${found.length} of ${block.prompts.length} prompts match` +
      (left > 0 ? `; the first ${limit} are shown` : "");
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(left, PROMPTS_AT_ONCE)} more`;
  }

  function filter() {
    limit = PROMPTS_AT_ONCE;
    fill();
  }

  search.addEventListener("input", filter);
  tag.addEventListener("change", filter);
  pattern.addEventListener("change", filter);
  more.addEventListener("click", () => {
    limit += PROMPTS_AT_ONCE;
    fill();
  });
  fill();
  groupListeners.push(fill);
  const field = (label, input) => element("label", {}, element("span", {}, label), input);
  return element("section", { class: "samples" },
    block.title ? element("h3", {}, block.title) : null,
    element("div", { class: "filters" }, field("Search", search),
      tags.length > 0 ? field("Tag", tag) : null, field("Verdicts", pattern)),
    count, list, more);
}
