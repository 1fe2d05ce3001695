// Asks pages.cpp: a request a line, fields parted by tabs; answers with the refusal.
#include "pages.h"

#include <iostream>
#include <sstream>

static std::vector<std::string> split(const std::string & text, char at) {
    std::vector<std::string> out;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, at);) {
        out.push_back(part);
    }
    return out;
}

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        std::vector<std::string> f = split(line, '\t');
        f.resize(8);
        if (f[0] == "key") {
            std::cout << web_same_key(f[1], f[2]) << '\n';
            continue;
        }
        const web_policy policy = { split(f[0], ','), split(f[1], ','), split(f[2], ',') };
        std::cout << web_refusal(policy, { f[3], f[4], f[5], f[6], f[7] }) << '\n';
    }
}
