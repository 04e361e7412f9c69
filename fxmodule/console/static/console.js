// The live parts of the console. Every page can be read without it.
"use strict";

(() => {
  const state = document.querySelector(".live-state");
  const button = document.querySelector("[data-pause]");
  const region = document.querySelector("[data-live]");
  const rows = document.querySelector("[data-tail]");
  const maxRows = 500;
  let source = null;
  let paused = false;
  let leftOut = 0;

  const say = (text) => { if (state && state.textContent !== text) state.textContent = text; };

  // swap shows a new part and leaves the focus where it was.
  const swap = (html) => {
    const focused = region.contains(document.activeElement) ? document.activeElement.id : "";
    const scrolled = [...region.querySelectorAll(".scroll")].map((e) => e.scrollLeft);
    region.innerHTML = html;
    region.querySelectorAll(".scroll").forEach((e, i) => { e.scrollLeft = scrolled[i] || 0; });
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  };

  const connect = () => {
    if (source || paused || document.hidden) return;
    source = new EventSource(region ? region.dataset.live : rows.dataset.tail);
    source.addEventListener("part", (e) => { swap(e.data); say("Live"); });
    source.addEventListener("same", () => say("Live"));
    source.addEventListener("open", () => say("Live"));
    source.addEventListener("trouble", (e) => { if (e.data) say("Trouble: " + e.data); });
    source.addEventListener("error", () => { if (!paused) say("Reconnecting…"); });
    source.addEventListener("message", (e) => {
      if (!rows) return;
      document.querySelector("[data-empty]")?.remove();
      rows.insertAdjacentHTML("afterbegin", e.data);
      while (rows.rows.length > maxRows) rows.deleteRow(-1);
      say(leftOut ? `Live, ${leftOut} not shown` : "Live");
    });
    source.addEventListener("left-out", (e) => {
      leftOut += Number(e.data);
      say(leftOut ? `Live, ${leftOut} not shown` : "Live");
    });
  };

  const disconnect = () => { source?.close(); source = null; };

  const pause = () => {
    paused = !paused;
    button.textContent = (paused ? "Resume" : "Pause") + (region ? " updates" : ""); // a group's page pauses the group, too
    if (paused) { disconnect(); say("Paused"); } else { connect(); }
  };

  if ((region || rows) && button && window.EventSource) {
    button.hidden = false;
    button.addEventListener("click", pause);
    document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
    window.addEventListener("pagehide", disconnect);
    window.addEventListener("pageshow", connect);
    connect();
  }
})();
