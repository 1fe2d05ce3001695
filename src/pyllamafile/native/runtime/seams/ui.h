// The web GUI's files, in place of the header that upstream generates from tools/ui:
// the names and types are those that tools/server/server-http.cpp uses. The files are in
// the llamafile, once, and not in each of its runtimes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#define LLAMA_UI_HAS_ASSETS 1

struct llama_ui_asset {
    std::string name;
    const unsigned char * data; // gzip
    std::size_t size;
    std::string etag;
    std::string type;
};

const llama_ui_asset * llama_ui_find_asset(const std::string & name);
const std::vector<llama_ui_asset> & llama_ui_get_assets();
bool llama_ui_use_gzip();
// Who asks doesn't take gzip: what this thread asks for next is inflated.
void llama_ui_inflate();
