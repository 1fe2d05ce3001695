// An answer names its sources as [handbook.md, p. 12]. On the pages of upstream's web GUI these
// become links that open the passage, which the server has out of the llamafile.
(() => {
    const NAMED = /\[([^[\]\n]{1,400})\]/g;
    const LINK = 'documents-source';
    const SOON = 200; // milliseconds: an answer is drawn anew with every word

    const ask = async (path) => {
        const answer = await llamafileServer.ask(path).catch(() => null);
        return answer?.ok ? (await answer.json()).data : null;
    };

    let asked = null; // for the names of the documents, once there is something in brackets
    const documents = () => {
        asked ??= ask('v1/documents').then((found) => {
            asked = found ? asked : null;
            return found?.map((each) => each.id) ?? [];
        });
        return asked;
    };

    const texts = (root) => {
        const found = [];
        const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
        for (let node = walker.nextNode(); node; node = walker.nextNode()) {
            if (node.data.includes('[') && !node.parentElement.closest('a, pre, code')) {
                found.push(node);
            }
        }
        return found;
    };

    const link = (label) => {
        const made = document.createElement('a');
        made.className = LINK;
        made.href = `v1/passages?cite=${encodeURIComponent(label)}`;
        made.textContent = `[${label}]`;
        return made;
    };

    const relink = async () => {
        const nodes = [...document.querySelectorAll('.markdown-content')].flatMap(texts);
        const names = nodes.length ? await documents() : [];
        for (const node of nodes) {
            const parts = [];
            let end = 0;
            for (const found of node.data.matchAll(NAMED)) {
                if (names.some((name) => found[1].trim().startsWith(name))) {
                    parts.push(node.data.slice(end, found.index), link(found[1].trim()));
                    end = found.index + found[0].length;
                }
            }
            if (parts.length && node.isConnected) {
                node.replaceWith(...parts, node.data.slice(end));
            }
        }
    };

    const element = (name, className, text) =>
        Object.assign(document.createElement(name), { className, textContent: text });

    const open = async (source) => {
        const passages = await ask(source.getAttribute('href'));
        const dialog = element('dialog', 'documents-passages', '');
        dialog.setAttribute('aria-label', source.textContent);
        const close = element('button', '', 'Close');
        close.type = 'button';
        close.onclick = () => dialog.close();
        dialog.onclose = () => dialog.remove();
        dialog.onclick = (event) => event.target === dialog && dialog.close();
        dialog.append(element('h2', '', source.textContent.slice(1, -1)));
        for (const { heading, text } of passages ?? []) {
            dialog.append(element('h3', '', heading), element('p', '', text));
        }
        if (!passages) {
            dialog.append(element('p', '', 'The documents have no such passage.'));
        }
        dialog.append(close);
        document.body.append(dialog);
        dialog.showModal();
    };

    document.addEventListener('click', (event) => {
        const source = event.target.closest?.(`a.${LINK}`);
        if (source && !event.ctrlKey && !event.metaKey) {
            event.preventDefault();
            open(source);
        }
    });

    document.addEventListener('DOMContentLoaded', () => {
        const style = element('style', '', `
            .${LINK} { text-decoration: underline; text-underline-offset: 2px; cursor: pointer; }
            .documents-passages { margin: auto; max-width: min(48rem, 90vw); max-height: 80vh;
                overflow: auto; padding: 1.5rem; border: 1px solid var(--border);
                border-radius: .75rem; background: var(--background); color: var(--foreground); }
            .documents-passages::backdrop { background: rgb(0 0 0 / 50%); }
            .documents-passages h2 { font-weight: 600; margin-bottom: 1rem; }
            .documents-passages h3 { font-size: .875rem; opacity: .7; }
            .documents-passages p { white-space: pre-wrap; margin: .25rem 0 1rem; }
            .documents-passages button { border: 1px solid var(--border); border-radius: .5rem;
                padding: .25rem .75rem; cursor: pointer; }`);
        document.head.append(style);
        let waits = false;
        new MutationObserver(() => {
            if (!waits) {
                waits = true;
                setTimeout(() => {
                    waits = false;
                    relink();
                }, SOON);
            }
        }).observe(document, { characterData: true, childList: true, subtree: true });
    });
})();
