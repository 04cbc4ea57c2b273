// What the theme adds to a page after it is loaded gets the names and the keyboard access that readers by ear or by keys need.
let waiting = false;
const name = () => {
  waiting = false;
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelector(".md-search__options")?.setAttribute("aria-label", "Buttons of the search");
  document.querySelectorAll("nav.md-code__nav").forEach((buttons, number) => {
    buttons.setAttribute("aria-label", `Buttons of code block ${number + 1}`);
  });
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex]), .md-typeset pre > code:not([tabindex])"))
    wide.tabIndex = 0;
};
const later = () => {
  if (!waiting) requestAnimationFrame(name);
  waiting = true;
};
new MutationObserver(later).observe(document.body, { childList: true, subtree: true });
later();
