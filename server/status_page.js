// Asks for the page again every two seconds, and says so when nobody answers.

async function renew() {
  try {
    const answer = await fetch("/");
    if (!answer.ok) throw new Error(await answer.text());
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = fresh.title;
    document.getElementById("page").replaceWith(fresh.getElementById("page"));
  } catch {
    document.getElementById("updated").textContent = "this page's server does not answer; the figures are old";
  }
}
setInterval(renew, 2000);
