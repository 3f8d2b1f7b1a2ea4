// What the theme and the extensions leave wrong for people who use a screen reader or speak to their browser.
document.addEventListener("DOMContentLoaded", () => {
  // A control that shows words must have them in its name; its own text is a name already.
  for (const control of document.querySelectorAll(".search-button-field, details.hide > summary")) {
    control.removeAttribute("aria-label");
  }
  // The titles of the icons count as words of the button that changes the colour mode.
  for (const control of document.querySelectorAll(".theme-switch-button")) {
    control.setAttribute("aria-label", "Colour mode: light, dark, system settings");
  }
  // An empty corner of a table heads no column.
  for (const corner of document.querySelectorAll("th")) {
    if (corner.textContent.trim() === "") corner.setAttribute("role", "presentation");
  }
  // A bibliography is a list; its role for single entries was withdrawn.
  for (const entry of document.querySelectorAll(".citation-list > .citation")) {
    entry.setAttribute("role", "listitem");
  }
  for (const stray of document.querySelectorAll(".citation-list > :not([role=listitem])")) {
    stray.remove();
  }
  // The title of the book stands outside every landmark.
  const top = document.querySelector(".sidebar-primary-items__start > .sidebar-primary-item");
  if (top) {
    top.setAttribute("role", "region");
    top.setAttribute("aria-label", "Title");
  }
});
