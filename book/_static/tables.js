// Numbers stand to the right, and do not break before their interval.
document.addEventListener("DOMContentLoaded", () => {
  const number = /^[-+−]?(\d[\d.,]*|nan|inf)([eE][-+]?\d+)?( ?± ?\d[\d.,]*([eE][-+]?\d+)?)?( ?%| ?[km]?s| ?[KM]i?B)?$|^–$/;
  for (const cell of document.querySelectorAll(".cell_output td")) {
    if (number.test(cell.textContent.trim())) cell.classList.add("number");
  }
});
