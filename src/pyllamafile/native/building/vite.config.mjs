// Upstream's configuration, and a list of all files that went into the pages.
import { writeFileSync } from 'node:fs';
import { loadConfigFromFile, mergeConfig } from 'vite';

const bundled = {
    name: 'bundled-files',
    generateBundle() {
        if (this.environment.name === 'client') {
            writeFileSync('bundled-files.json', JSON.stringify([...this.getWatchFiles()]));
        }
    },
};

export default async (env) => {
    const { config } = await loadConfigFromFile(env, 'vite.config.ts');
    return mergeConfig(config, { plugins: [bundled] });
};
