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

// Who the llamafile says it is, on the pages of upstream's web GUI, which draw themselves anew.
(async () => {
    const answer = await fetch('persona.json', { cache: 'no-store' }).catch(() => null);
    const persona = answer?.ok ? await answer.json() : {};
    const { name, greeting, suggestions = [], accent, icon } = persona;
    if (!Object.keys(persona).length) {
        return;
    }

    const once = (element, mark) => {
        const fresh = element && !(mark in element.dataset);
        if (fresh) {
            element.dataset[mark] = '';
        }
        return fresh;
    };

    const entitle = () => {
        const title = document.title.replace(/llama-ui|llama\.cpp/, name);
        if (name && document.title !== title) {
            document.title = title;
        }
    };

    const draw = () => {
        for (const link of document.querySelectorAll('link[rel~="icon"], link[rel="apple-touch-icon"]')) {
            if (icon && link.href !== icon) {
                link.href = icon;
                link.type = 'image/png';
            }
        }
    };

    const suggest = (text) => {
        const button = document.createElement('button');
        button.type = 'button';
        button.textContent = text;
        button.className = 'persona-suggestion';
        button.onclick = () => {
            // Upstream's own way to open a page with a question.
            location.assign(location.pathname + '?q=' + encodeURIComponent(text));
        };
        return button;
    };

    const greet = () => {
        const heading = [...document.querySelectorAll('h1')].find(
            (each) => each.textContent.trim() === 'Hello there',
        );
        if (!once(heading, 'persona')) {
            return;
        }
        heading.textContent = greeting ?? name ?? heading.textContent;
        if (icon) {
            const picture = Object.assign(new Image(), { src: icon, alt: '', className: 'persona-icon' });
            heading.before(picture);
        }
        const buttons = document.createElement('div');
        buttons.className = 'persona-suggestions';
        buttons.append(...suggestions.map(suggest));
        heading.parentElement.append(buttons);
    };

    const style = document.createElement('style');
    style.textContent = `
        .persona-icon { height: 4rem; margin: 0 auto 1rem; }
        .persona-suggestions { display: flex; flex-wrap: wrap; gap: .5rem;
            justify-content: center; margin-top: 1.5rem; }
        .persona-suggestion { border: 1px solid var(--border); border-radius: 1rem;
            padding: .375rem .875rem; font-size: .875rem; cursor: pointer;
            position: relative; z-index: 1; pointer-events: auto; }
        .persona-suggestion:hover { background: var(--accent); }`;
    if (accent) {
        const [red, green, blue] = accent
            .slice(1)
            .match(accent.length === 4 ? /./g : /../g)
            .map((part) => parseInt(part.padEnd(2, part), 16));
        const bright = 0.299 * red + 0.587 * green + 0.114 * blue > 150; // as ITU-R BT.601 weighs
        style.textContent += `
            :root, .dark { --primary: ${accent}; --ring: ${accent}; --sidebar-primary: ${accent};
                --primary-foreground: ${bright ? '#111111' : '#ffffff'}; }`;
    }
    document.head.append(style);

    const dress = () => {
        entitle();
        draw();
        greet();
    };
    new MutationObserver(dress).observe(document, {
        attributeFilter: ['href'],
        characterData: true,
        childList: true,
        subtree: true,
    });
    dress();
})();
