#include "addresses.h"

#ifdef _WIN32
#include <winsock2.h>
#include <ws2tcpip.h>
#else
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#endif

namespace {

// In numbers; empty for what is no address of the Internet, or good on one wire alone.
std::string in_numbers(const sockaddr * address, size_t size) {
    char text[NI_MAXHOST];
    if (address == nullptr || (address->sa_family != AF_INET && address->sa_family != AF_INET6) ||
        getnameinfo(address, (socklen_t)size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) !=
            0) {
        return "";
    }
    const std::string out = text;
    for (const char * start : { "127.", "169.254.", "::1", "fe80:" }) {
        if (out.rfind(start, 0) == 0) {
            return "";
        }
    }
    return out;
}

} // namespace

std::vector<std::string> machine_addresses() {
    std::vector<std::string> narrow, wide;
    const auto add = [&](const sockaddr * address, size_t size) {
        const std::string text = in_numbers(address, size);
        if (!text.empty()) {
            (address->sa_family == AF_INET ? narrow : wide).push_back(text);
        }
    };
#ifdef _WIN32
    char name[256];
    addrinfo hints = {};
    addrinfo * all = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (gethostname(name, sizeof(name)) == 0 && getaddrinfo(name, nullptr, &hints, &all) == 0) {
        for (const addrinfo * each = all; each != nullptr; each = each->ai_next) {
            add(each->ai_addr, each->ai_addrlen);
        }
        freeaddrinfo(all);
    }
#else
    ifaddrs * all = nullptr;
    if (getifaddrs(&all) == 0) {
        for (const ifaddrs * each = all; each != nullptr; each = each->ifa_next) {
            if ((each->ifa_flags & IFF_UP) != 0 && each->ifa_addr != nullptr) {
                add(each->ifa_addr, each->ifa_addr->sa_family == AF_INET ? sizeof(sockaddr_in)
                                                                         : sizeof(sockaddr_in6));
            }
        }
        freeifaddrs(all);
    }
#endif
    return narrow.empty() ? wide : narrow;
}
