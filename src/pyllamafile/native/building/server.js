// The server that the pages come from, for the scripts behind this one. Upstream's settings have
// the key that somebody has typed, or that came with the address (page.js).
const llamafileServer = (() => {
    const key = () => {
        try {
            return JSON.parse(localStorage.getItem('LlamaUi.config') ?? '{}').apiKey ?? '';
        } catch {
            return '';
        }
    };
    const ask = (path, { headers = {}, ...options } = {}) =>
        fetch(path, {
            cache: 'no-store',
            headers: { ...headers, ...(key() ? { Authorization: `Bearer ${key()}` } : {}) },
            ...options,
        });
    return { key, ask };
})();
