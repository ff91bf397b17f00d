"use strict";
// Fetches what changes and puts it in place of what is shown, every few seconds while somebody looks.
(() => {
  const every = 5000, patience = 10000;
  const stale = document.getElementById("stale");
  const colours = { healthy: "#1a7f37", degraded: "#bf8700", unhealthy: "#d1242f", unknown: "#818b98" };
  let shown = new Date(), timer = 0, asking = false;

  const dress = (main) => {
    document.title = main.dataset.title;
    const dot = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${colours[main.dataset.state]}"/></svg>`;
    document.querySelector("link[rel=icon]").href = "data:image/svg+xml," + encodeURIComponent(dot);
  };

  const put = (text) => {
    const old = document.querySelector("main");
    const main = new DOMParser().parseFromString(text, "text/html").querySelector("main");
    if (!main) throw new Error("not the status page");
    const focused = old.contains(document.activeElement) && document.activeElement.closest("[id]");
    for (const each of main.querySelectorAll("details[id]")) {
      const before = document.getElementById(each.id);
      if (before) each.open = before.open; // as the reader left it
    }
    old.replaceWith(document.adoptNode(main));
    if (focused) (document.getElementById(focused.id)?.querySelector("summary") ?? document.body).focus({ preventScroll: true });
    dress(main);
  };

  const update = async () => {
    clearTimeout(timer);
    if (document.hidden || asking) return;
    asking = true;
    try {
      const answer = await fetch("/?main", { signal: AbortSignal.timeout(patience), cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (getSelection().isCollapsed) put(text); // whoever is copying something goes on with it
      shown = new Date();
      stale.hidden = true;
    } catch {
      stale.querySelector("span").textContent = shown.toLocaleTimeString();
      stale.hidden = false;
    } finally {
      asking = false;
    }
    timer = setTimeout(update, every);
  };

  document.addEventListener("visibilitychange", update);
  dress(document.querySelector("main"));
  timer = setTimeout(update, every);
})();
