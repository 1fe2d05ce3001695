#include "system/groups.h"

#include <fstream>

namespace {

double least(const std::string & root, std::string path,
             double (*limit)(const std::string & folder)) {
    double found = 0;
    for (;;) {
        const double here = limit(root + path);
        if (here > 0 && (found == 0 || here < found)) {
            found = here;
        }
        if (path.empty()) {
            return found;
        }
        path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
}

} // namespace

double least_of_groups(const std::string & controller,
                       double (*limit)(const std::string & folder)) {
    std::ifstream groups("/proc/self/cgroup"); // ID:CONTROLLERS:PATH
    for (std::string line; std::getline(groups, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) {
            continue;
        }
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const bool v1 = controllers.find("," + controller + ",") != std::string::npos;
        if (v1 || controllers == ",,") {
            const std::string root = v1 ? "/sys/fs/cgroup/" + controller : "/sys/fs/cgroup";
            const double found = least(root, line.substr(second + 1), limit);
            if (found > 0) {
                return found;
            }
        }
    }
    return 0;
}
