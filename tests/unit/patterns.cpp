// Prints the grammar of a pattern: its first argument, with the least and the most characters after
// it; or why there is none.

#include "seams/patterns.h"

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

int main(int argc, char ** argv) {
    try {
        std::map<std::string, std::string> rules;
        const std::string start =
            add_pattern_rules(rules, "root", argc > 1 ? argv[1] : "", argc > 2 ? atoi(argv[2]) : 0,
                              argc > 3 ? atoi(argv[3]) : -1);
        printf("%s\n", start.c_str());
        for (const auto & [name, rule] : rules) {
            printf("%s ::= %s\n", name.c_str(), rule.c_str());
        }
        return 0;
    } catch (const std::invalid_argument & e) {
        printf("%s\n", e.what());
        return 1;
    }
}
