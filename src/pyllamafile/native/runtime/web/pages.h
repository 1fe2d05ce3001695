// Which web pages may use the server. A browser sends what a page asks for to any address, this
// machine's own included, so the server has to tell its own page from all others.
#pragma once

#include <string>
#include <vector>

struct web_policy {
    std::vector<std::string> listens; // what the server listens on, as --host has it
    std::vector<std::string> hosts;   // --allow-host: more names that people call it by
    std::vector<std::string> origins; // --allow-origin: other pages that may use it; * for any
};

// What of a request says where it comes from: headers, or empty where there is no such header.
struct web_request {
    std::string host;   // Host
    std::string origin; // Origin
    std::string site;   // Sec-Fetch-Site
    std::string mode;   // Sec-Fetch-Mode
    std::string dest;   // Sec-Fetch-Dest
};

// Why a request is refused, in one line that names the flag which allows it; empty if it isn't.
std::string web_refusal(const web_policy & policy, const web_request & request);

// Whether the request comes from a page that is not the server's own. If it isn't refused, the
// browser shows that page the answer only if the answer names the page.
bool web_is_other_page(const web_request & request);

// Whether what the server listens on, hosts and sockets, is for this machine alone.
bool web_is_local(const std::vector<std::string> & listens);

// Whether a host is one that only this machine can reach.
bool web_is_loopback(const std::string & host);

// Compares in a time that says nothing of how much is right.
bool web_same_key(const std::string & given, const std::string & key);
