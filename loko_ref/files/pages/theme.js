// The button of light and dark: the system's choice until it is pressed, then what was chosen.
"use strict";
{
  const root = document.documentElement, button = document.getElementById("theme");
  const kept = { get: () => { try { return localStorage.getItem("loko-ref theme"); } catch { return null; } },
    set: (to) => { try { localStorage.setItem("loko-ref theme", to); } catch { /* not kept */ } } };
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches);
  const show = () => { button.textContent = dark() ? "Light" : "Dark"; };
  if (kept.get() === "dark" || kept.get() === "light") root.dataset.theme = kept.get();
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; kept.set(root.dataset.theme); show(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}
