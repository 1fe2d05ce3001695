#include "pages.h"

#include <algorithm>

namespace {

std::string lower(std::string text) {
    for (char & c : text) {
        c = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    }
    return text;
}

bool has(const std::vector<std::string> & list, const std::string & what) {
    return std::find(list.begin(), list.end(), what) != list.end();
}

// The host of an authority (RFC 3986, section 3.2), without port, brackets and the root's dot.
std::string host_of(const std::string & authority) {
    std::string host = lower(authority);
    if (!host.empty() && host.front() == '[') {
        return host.substr(1, host.find(']') - 1);
    }
    if (std::count(host.begin(), host.end(), ':') == 1) {
        host.resize(host.find(':'));
    }
    if (!host.empty() && host.back() == '.') {
        host.pop_back();
    }
    return host;
}

// The authority of an origin such as http://localhost:8080; empty if it is none.
std::string authority_of(const std::string & origin) {
    for (const std::string scheme : { "http://", "https://" }) {
        if (origin.rfind(scheme, 0) == 0) {
            return origin.substr(scheme.size());
        }
    }
    return "";
}

// An address in numbers, to which no name server of a stranger can lead.
bool is_literal(const std::string & host) {
    if (host.find(':') != std::string::npos) {
        return host.find_first_not_of("0123456789abcdef:.%") == std::string::npos;
    }
    return std::count(host.begin(), host.end(), '.') == 3 &&
           host.find_first_not_of("0123456789.") == std::string::npos;
}

bool listens_everywhere(const web_policy & policy) {
    return has(policy.listens, "0.0.0.0") || has(policy.listens, "::");
}

bool is_ours(const web_policy & policy, const std::string & authority) {
    const std::string host = host_of(authority);
    return web_is_loopback(host) || has(policy.listens, host) || has(policy.hosts, host) ||
           (listens_everywhere(policy) && is_literal(host));
}

bool on_socket(const web_policy & policy) {
    return std::any_of(policy.listens.begin(), policy.listens.end(), [](const std::string & at) {
        return at.size() > 5 && at.compare(at.size() - 5, 5, ".sock") == 0;
    });
}

} // namespace

bool web_is_loopback(const std::string & host) {
    return host == "localhost" || host == "::1" || (is_literal(host) && host.rfind("127.", 0) == 0);
}

bool web_is_local(const std::vector<std::string> & listens) {
    return std::all_of(listens.begin(), listens.end(), [](const std::string & at) {
        return web_is_loopback(at) || at.find('/') != std::string::npos;
    });
}

bool web_is_other_page(const web_request & request) {
    const std::string authority = authority_of(lower(request.origin));
    return !request.origin.empty() && authority != lower(request.host);
}

std::string web_refusal(const web_policy & policy, const web_request & request) {
    // No page reaches a Unix socket, and a program may call it what it likes.
    if (!request.host.empty() && !on_socket(policy) && !is_ours(policy, request.host)) {
        return "this server is not called " + request.host + ": --allow-host " +
               host_of(request.host) + " allows it";
    }
    if (!web_is_other_page(request)) {
        // Pictures, frames and forms of other pages may come without an origin. A link may lead
        // here.
        const bool other = request.site == "cross-site" || request.site == "same-site";
        const bool link = request.mode == "navigate" && request.dest == "document";
        if (!request.origin.empty() || !other || link || has(policy.origins, "*")) {
            return "";
        }
        return "other pages may not use this server: --allow-origin URL allows one";
    }
    const std::string origin = lower(request.origin);
    const std::string host = host_of(authority_of(origin));
    if (has(policy.origins, "*") || has(policy.origins, origin) || has(policy.hosts, host)) {
        return "";
    }
    return "the page " + request.origin + " may not use this server: --allow-origin " +
           request.origin + " allows it";
}

bool web_same_key(const std::string & given, const std::string & key) {
    unsigned char difference = given.size() == key.size() ? 0 : 1;
    for (size_t i = 0; i < given.size(); i++) {
        difference |= (unsigned char)(given[i] ^ key[key.empty() ? 0 : i % key.size()]);
    }
    return difference == 0 && !key.empty();
}
