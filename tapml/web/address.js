// What an address with a token opens, and all that is loaded under it: the token leaves the address and the tab's history, and the page itself follows, at
// "/" for the hub's own token and at "/?device" for a paired device's. Who this is says the cookie that came with the answer, which no script can read.
// The page is loaded anew, since a script could ask a document for the address that it was opened with (performance.getEntriesByType).

{
  const token = new URLSearchParams(location.search).get("token") ?? "";
  const place = /^d-[0-9a-f]+-[0-9a-f]{64}$/.test(token) ? "/?device" : "/";
  history.replaceState(null, "", place);
  location.replace(place);
}
