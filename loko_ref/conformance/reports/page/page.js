// The filter, the button that opens all cards, links that open what they lead to, and derivations,
// which open above the page; without this script they stand at its end.
"use strict";
{
  const filter = document.getElementById("filter"), fold = document.getElementById("fold");
  const matching = document.getElementById("matching"), faults = [...document.querySelectorAll(".fault")];
  const rows = [...document.querySelectorAll(".operations tr:not(:first-child), .rest li")];
  const text = (node) => node.textContent.toLowerCase();
  const has = (whole, words) => words.every((word) => whole.includes(word));

  const narrow = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const fault of faults) {
      fault.hidden = !has(text(fault), words);
      const head = has(text(fault.querySelector("summary")), words);
      for (const item of fault.querySelectorAll(".checks li")) item.hidden = !head && !has(text(item), words);
      for (const group of fault.querySelectorAll(".checks")) {
        group.hidden = !group.querySelector("li:not([hidden])");
        if (words.length) group.open = !head && !group.hidden;
      }
    }
    for (const row of rows) row.hidden = !has(text(row), words);
    const shown = faults.filter((fault) => !fault.hidden).length;
    matching.textContent = words.length ? `${shown} of ${faults.length} kinds` : "";
  };
  const reveal = () => {
    const to = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let node = to; node; node = node.parentElement) {
      node.hidden = false;
      if (node.tagName === "DETAILS") node.open = true;
    }
    const card = to?.closest(".fault");
    (card ?? to)?.scrollIntoView();
    card?.querySelector("summary").focus({ preventScroll: true });
  };
  const label = () => { fold.textContent = faults.every((fault) => fault.open) ? "Close all" : "Open all"; };

  if (faults.length) {
    filter.parentElement.hidden = fold.hidden = false;
    filter.addEventListener("input", narrow);
    fold.addEventListener("click", () => {
      const open = !faults.every((fault) => fault.open);
      for (const fault of faults) fault.open = open;
      label();
    });
    for (const fault of faults) fault.addEventListener("toggle", label);
    label();
  }
  // a formula that is wider than its place is scrolled by keyboard too
  const reachable = (root) => {
    for (const math of root.querySelectorAll("math[display=block]")) {
      if (math.scrollWidth > math.clientWidth) math.tabIndex = 0;
    }
  };
  document.addEventListener("toggle", (event) => reachable(event.target), true);

  const dialog = document.getElementById("opened");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.label, button.label");
    const found = link && document.getElementById(link.dataset.label ?? link.hash.slice(1));
    if (!found || !dialog) return;
    event.preventDefault();
    const copy = found.cloneNode(true), title = document.createElement("h2");
    copy.removeAttribute("id");
    title.textContent = found.parentElement.querySelector("summary").textContent;
    dialog.lastElementChild.replaceChildren(title, copy);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    reachable(dialog);
  });
  addEventListener("hashchange", reveal);
  reveal();
}
