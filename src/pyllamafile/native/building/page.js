// In the head of index.html. The server prints a key that it made as part of its address, behind a
// number sign, which no browser sends anywhere; the pages look for a key in their settings.
(() => {
    const found = /^#key=([\w-]+)$/.exec(location.hash);
    if (found) {
        const settings = JSON.parse(localStorage.getItem('LlamaUi.config') ?? '{}');
        localStorage.setItem('LlamaUi.config', JSON.stringify({ ...settings, apiKey: found[1] }));
        history.replaceState(null, '', location.pathname + location.search);
    }
})();
