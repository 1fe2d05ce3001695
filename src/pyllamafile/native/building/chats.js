// Upstream's web GUI keeps conversations in a database of the browser's, by the address of the
// server. Here they are the server's, at chats and chats/ID: the database has a name of this
// llamafile's own, is brought up to date before the GUI opens it, and what the GUI changes in it is
// sent to the server. Where the server keeps none, all is as upstream has it.
(() => {
    const THEIRS = 'LlamaUi'; // upstream's database
    const CONVERSATIONS = 'conversations', MESSAGES = 'messages';
    const AT_ONCE = 8; // requests
    const [SOON, LATER, LATEST] = [50, 1000, 30_000]; // milliseconds
    const KEEPALIVE = 60_000; // bytes that a browser sends for a page that is gone

    if (!self.indexedDB) {
        return;
    }
    const upstreams = {
        open: IDBFactory.prototype.open,
        deleteDatabase: IDBFactory.prototype.deleteDatabase,
        fetch: self.fetch,
    };

    // What this browser knows of the folder, a row per conversation, for all of its tabs.

    let folder = null; // the server's name for where it keeps them
    const row = (what, id) => `${THEIRS}.chats.${folder}.${what}.${id}`;
    const rows = (what) => {
        const start = row(what, '');
        return Object.keys(localStorage)
            .filter((key) => key.startsWith(start))
            .map((key) => key.slice(start.length));
    };
    // The version that the browser's copy was made of, or became.
    const version = {
        of: (id) => localStorage.getItem(row('version', id)),
        set: (id, to) => localStorage.setItem(row('version', id), to),
        forget: (id) => localStorage.removeItem(row('version', id)),
    };
    // What the server doesn't know yet: that the conversation was changed, or that it is gone. It
    // is marked before the database has it, so that nothing that ends the page forgets it.
    const [CHANGED, GONE] = ['changed', 'gone'];
    const mark = {
        of: (id) => localStorage.getItem(row('mark', id)),
        set: (id, what) => localStorage.setItem(row('mark', id), `${what} ${Math.random()}`),
        clear: (id, seen) => mark.of(id) === seen && localStorage.removeItem(row('mark', id)),
        all: () => rows('mark'),
        isGone: (id) => mark.of(id)?.startsWith(GONE) ?? false,
    };

    // The server.

    const { key, ask } = llamafileServer;
    const pause = (time) => new Promise((over) => setTimeout(over, time));
    const at = (id) => `chats/${id}?folder=${folder}`;

    const list = async () => {
        for (;;) {
            const answer = await ask('chats').catch(() => null);
            if (answer?.status !== 503) {
                return answer;
            }
            await pause(LATER / 2); // it loads the model
        }
    };

    const fetched = async (id) => {
        const answer = await ask(at(id));
        if (!answer.ok) {
            return answer.status === 404 ? null : Promise.reject(new Error(await answer.text()));
        }
        const { conv, messages } = await answer.json();
        if (conv?.id !== id || !messages?.every((each) => each.convId === id)) {
            throw new Error(`chats/${id} has something else in it`);
        }
        return { conv, messages, version: answer.headers.get('ETag').replaceAll('"', '') };
    };

    // The database, without anybody noticing.

    const silent = new WeakSet(); // transactions of ours
    let database = null;
    const done = (request) =>
        new Promise((resolve, reject) => {
            request.onsuccess = () => resolve(request.result);
            request.onerror = () => reject(request.error);
        });
    const transaction = (on, mode, act) =>
        new Promise((resolve, reject) => {
            const all = on.transaction([CONVERSATIONS, MESSAGES], mode);
            silent.add(all);
            all.oncomplete = () => resolve(result);
            all.onerror = all.onabort = () => reject(all.error);
            const result = act(all.objectStore(CONVERSATIONS), all.objectStore(MESSAGES));
        });
    const held = async (id, on = database) => {
        const [conv, messages] = await transaction(on, 'readonly', (conversations, all) =>
            Promise.all([done(conversations.get(id)), done(all.index('convId').getAll(id))]),
        );
        return conv ? { conv, messages } : null;
    };
    const ids = async (on = database) =>
        transaction(on, 'readonly', (conversations) => done(conversations.getAllKeys()));
    const put = ({ conv, messages }) =>
        transaction(database, 'readwrite', (conversations, all) => {
            all.index('convId').getAllKeys(conv.id).onsuccess = (event) => {
                event.target.result.forEach((each) => all.delete(each));
                messages.forEach((each) => all.put(each));
            };
            conversations.put(conv);
        });
    const remove = (id) =>
        transaction(database, 'readwrite', (conversations, all) => {
            all.index('convId').getAllKeys(id).onsuccess = (event) =>
                event.target.result.forEach((each) => all.delete(each));
            conversations.delete(id);
        });

    // Two that were changed in two places become one that has the messages of both. What one of
    // them deleted comes back: better twice than never.
    const merged = (here, there) => {
        const messages = new Map(there.messages.map((each) => [each.id, each]));
        for (const mine of here.messages) {
            const other = messages.get(mine.id);
            const fuller = !mine.content && other?.content ? other : mine;
            const children = [...(other?.children ?? []), ...(mine.children ?? [])];
            messages.set(mine.id, { ...fuller, children: [...new Set(children)] });
        }
        const newer = here.conv.lastModified >= there.conv.lastModified ? here.conv : there.conv;
        for (const each of messages.values()) {
            each.children = each.children?.filter((child) => messages.has(child));
        }
        return { conv: newer, messages: [...messages.values()] };
    };

    // One conversation goes to the server.

    const post = async (id, conversation, leaving) => {
        const body = JSON.stringify(conversation);
        const known = version.of(id);
        return ask(at(id), {
            method: 'POST',
            headers: {
                'Content-Type': 'application/json',
                ...(known ? { 'If-Match': `"${known}"` } : { 'If-None-Match': '*' }),
            },
            body,
            keepalive: leaving && body.length < KEEPALIVE,
        });
    };
    const reconcile = async (id, conversation) => {
        const theirs = await fetched(id);
        if (!theirs) {
            version.forget(id); // it was removed elsewhere, and changed here
            return;
        }
        await put(merged(conversation, theirs));
        version.set(id, theirs.version);
    };
    const send = async (id, leaving = false) => {
        for (let tries = 0; tries < 5; tries++) {
            const seen = mark.of(id);
            const conversation = seen && !mark.isGone(id) ? await held(id) : null;
            if (!seen || (!conversation && !mark.isGone(id))) {
                mark.clear(id, seen);
                return true;
            }
            const answer = conversation
                ? await post(id, conversation, leaving)
                : await ask(at(id), { method: 'DELETE', keepalive: leaving });
            if (answer.ok || (!conversation && answer.status === 404)) {
                conversation
                    ? version.set(id, (await answer.json()).version)
                    : version.forget(id);
                mark.clear(id, seen);
                return true;
            }
            if (answer.status !== 412) {
                console.warn(`chats/${id}:`, await answer.text());
                return answer.status === 413 || answer.status === 400; // no other time helps
            }
            await reconcile(id, conversation);
        }
        return false;
    };
    // One tab at a time; without locks (a page that came over plain HTTP) the versions do.
    const alone = (id, act) =>
        navigator.locks ? navigator.locks.request(row('lock', id), act) : act();

    const waiting = new Map(); // conversations that are to be sent, with their timers
    const running = new Map(); // and that are being sent
    const flush = (id, wait = LATER, leaving = false) => {
        clearTimeout(waiting.get(id));
        waiting.delete(id);
        const sent = (running.get(id) ?? Promise.resolve())
            .then(() => alone(id, () => send(id, leaving)))
            .catch(() => false)
            .then((fine) => fine || schedule(id, wait, Math.min(2 * wait, LATEST)));
        running.set(id, sent);
        return sent;
    };
    const schedule = (id, wait = SOON, next = LATER) => {
        clearTimeout(waiting.get(id));
        waiting.set(id, setTimeout(() => flush(id, next), wait));
    };
    addEventListener('pagehide', () => [...waiting.keys()].forEach((id) => flush(id, LATER, true)));

    // What the GUI does to the database.

    const note = (store, changed) => {
        const owner = store.transaction;
        if (!folder || silent.has(owner) || owner.db.name !== ownName()) {
            return;
        }
        changed((id, what) => {
            if (what === GONE || store.name === CONVERSATIONS || !mark.isGone(id)) {
                mark.set(id, what);
            }
            owner.addEventListener('complete', () => schedule(id));
        });
    };
    const written = (store, value) =>
        note(store, (tell) => tell(store.name === MESSAGES ? value.convId : value.id, CHANGED));
    const deleted = (store, query) =>
        note(store, (tell) => {
            if (store.name === MESSAGES) {
                store.getAll(query).onsuccess = (event) =>
                    event.target.result.forEach((each) => tell(each.convId, CHANGED));
            } else {
                store.getAllKeys(query).onsuccess = (event) =>
                    event.target.result.forEach((each) => tell(each, GONE));
            }
        });
    const before = (prototype, method, tell) => {
        const theirs = prototype[method];
        prototype[method] = function (...words) {
            tell(this, ...words);
            return theirs.apply(this, words);
        };
    };
    const storeOf = (cursor) => cursor.source.objectStore ?? cursor.source;
    before(IDBObjectStore.prototype, 'put', written);
    before(IDBObjectStore.prototype, 'add', written);
    before(IDBObjectStore.prototype, 'delete', deleted);
    before(IDBObjectStore.prototype, 'clear', (store) => deleted(store));
    before(IDBCursor.prototype, 'update', (cursor, value) => written(storeOf(cursor), value));
    before(IDBCursor.prototype, 'delete', (cursor) => deleted(storeOf(cursor), cursor.primaryKey));

    // Before the GUI has the database.

    const each = async (all, act) => {
        const left = [...all];
        const work = async () => {
            while (left.length) {
                await act(left.shift());
            }
        };
        await Promise.all(Array.from({ length: AT_ONCE }, work));
    };
    const catchUp = async ({ exists, chats }) => {
        const local = new Set(await ids());
        if (!exists) {
            // Somebody removed the folder, or it was never there: this may be the only copy.
            local.forEach((id) => {
                version.forget(id);
                mark.set(id, CHANGED);
            });
        }
        const theirs = new Map(chats.map((one) => [one.id, one.version]));
        for (const id of local) {
            if (!theirs.has(id) && !mark.of(id) && exists) {
                version.of(id) ? await remove(id) : mark.set(id, CHANGED);
            }
        }
        const isNew = (id) => theirs.get(id) !== version.of(id) || !local.has(id);
        const wanted = [...theirs.keys()].filter((id) => !mark.of(id) && isNew(id));
        await each(wanted, async (id) => {
            const conversation = await fetched(id).catch(console.warn);
            if (conversation) {
                await put(conversation);
                version.set(id, conversation.version);
            }
        });
        await each(mark.all(), (id) => flush(id));
    };

    // What the browser has from before, once. It is this file's if one of its models has answered.
    const bring = async () => {
        const known = (await indexedDB.databases?.()) ?? [];
        const flag = row('brought', 'all');
        if (localStorage.getItem(flag) || !known.some((one) => one.name === THEIRS)) {
            return;
        }
        const { data } = await (await ask('v1/models')).json();
        const models = new Set(data.map((one) => one.id));
        const old = await done(upstreams.open.call(indexedDB, THEIRS));
        const stores = [...old.objectStoreNames];
        const there = stores.includes(CONVERSATIONS) && stores.includes(MESSAGES);
        for (const id of there ? await ids(old) : []) {
            const claim = `${THEIRS}.chats.brought.${id}`;
            const conversation = await held(id, old);
            const own = conversation.messages.some((one) => models.has(one.model));
            if (own && !localStorage.getItem(claim) && !(await held(id))) {
                mark.set(id, CHANGED);
                await put(conversation);
                localStorage.setItem(claim, folder);
            }
        }
        old.close();
        localStorage.setItem(flag, 'yes');
    };

    // A page that is opened while the server writes an answer takes it up, from its beginning, and
    // appends it to the last answer that it has. That one may be whole: a page elsewhere wrote it.
    const takesUp = async (id) => {
        const interrupted = localStorage.getItem(`${THEIRS}.streamResume.${id}`);
        const messages = (database && !interrupted && (await held(id))?.messages) || [];
        const answers = messages.filter((each) => each.role === 'assistant');
        return !answers.sort((a, b) => a.timestamp - b.timestamp).at(-1)?.timings;
    };
    self.fetch = async (resource, options) => {
        const answer = await upstreams.fetch.call(self, resource, options);
        if (!folder || !answer.ok || !`${resource?.url ?? resource}`.endsWith('v1/streams/lookup')) {
            return answer;
        }
        const sessions = await answer.json();
        const wanted = await Promise.all(
            sessions.map((each) => takesUp(each.conversation_id.split('::')[0])),
        );
        return Response.json(sessions.filter((_, at) => wanted[at]));
    };

    const ownName = () => (folder ? `${THEIRS}.${folder}` : THEIRS);

    // A key may be typed into the settings, and then there is what was not to be seen before.
    const waitForKey = async () => {
        for (let wrong = key(); ; await pause(LATER)) {
            if (key() === wrong) {
                continue;
            }
            wrong = key();
            if ((await list())?.ok) {
                location.reload();
                return;
            }
        }
    };

    const found = list().then(async (answer) => {
        const last = `${THEIRS}.chats.last`;
        const listed = answer?.ok ? await answer.json() : null;
        if (listed) {
            folder = listed.folder;
            localStorage.setItem(last, folder);
        } else if (!answer) {
            folder = localStorage.getItem(last); // no server: a page that the browser had kept
        } else if (answer.status === 401) {
            waitForKey();
        }
        return listed;
    });
    let prepared = null;
    const prepare = async () => {
        const listed = await found;
        // A connection of our own: upstream closes its, and opens another one.
        database = await done(upstreams.open.call(indexedDB, ownName()));
        database.onversionchange = () => database.close();
        if (listed) {
            await bring().catch(console.warn);
            await catchUp(listed).catch(console.warn);
        } else if (folder) {
            mark.all().forEach((id) => schedule(id, LATER));
        }
    };

    // Stands for the request that is made when the name is known; upstream's library asks no more
    // of one than this.
    IDBFactory.prototype.open = function (name, ...rest) {
        if (name !== THEIRS) {
            return upstreams.open.call(this, name, ...rest);
        }
        let real = null;
        const request = {
            get result() {
                return real.result;
            },
            get transaction() {
                return real?.transaction ?? null;
            },
            get error() {
                return real?.error ?? null;
            },
        };
        const pass = (event) => request[`on${event.type}`]?.(event);
        found
            .catch(() => null)
            .then(() => {
                real = upstreams.open.call(this, ownName(), ...rest);
                real.onupgradeneeded = real.onblocked = real.onerror = pass;
                real.onsuccess = async (event) => {
                    if (folder) {
                        await (prepared ??= prepare().catch(console.warn));
                    }
                    request.onsuccess?.(event);
                };
            });
        return request;
    };
    IDBFactory.prototype.deleteDatabase = function (name) {
        return upstreams.deleteDatabase.call(this, name === THEIRS ? ownName() : name);
    };
})();
