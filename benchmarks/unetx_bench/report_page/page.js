"use strict";
// A slider uncovers one picture over the other; on paper both are shown beside each other, and folded parts open.
for (const slider of document.querySelectorAll(".slider input")) {
  const stage = slider.closest(".slider").querySelector(".stage");
  const place = () => {
    stage.style.setProperty("--at", slider.value + "%");
    slider.setAttribute("aria-valuetext", slider.value + " % of the engine's mask shown");
  };
  slider.addEventListener("input", place);
  place();
}
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
