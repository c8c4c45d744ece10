// Asks for the page again every two seconds, and says so when nobody answers.

async function renew() {
  try {
    const answer = await fetch("/");
    if (!answer.ok) throw new Error(await answer.text());
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = fresh.title;
    update(document.getElementById("page"), fresh.getElementById("page"));
  } catch {
    document.getElementById("updated").textContent = "this page's server does not answer; the figures are old";
  }
}

// Makes `old` say what `fresh` says and keeps its nodes, so that focus and scrolling stay where they
// are. What may come and go before others has an id, by which those others are found again.
function update(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  let at = old.firstChild;
  for (const child of fresh.childNodes) {
    const kept = child.id ? [...old.children].find((one) => one.id === child.id) : alike(at, child) && at;
    if (!kept) {
      old.insertBefore(document.importNode(child, true), at);
      continue;
    }
    while (at !== kept) at = removed(at);
    update(kept, child);
    at = kept.nextSibling;
  }
  while (at) at = removed(at);
}

function alike(one, other) {
  return one && one.nodeName === other.nodeName && !one.id;
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

setInterval(renew, 2000);
