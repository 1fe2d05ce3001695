// The rules of pages.cpp, asked for every request of the server before anything else looks at it.

#include "guard.h"

#include "../seams/web-guard.h"
#include "../system/peer.h"
#include "../system/system.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <random>

namespace {

web_policy policy;

std::atomic<int> running{ 0 };
std::atomic<bool> closed{ false };

// A request is running for as long as there is its response. The router's page listens for news at
// one path until it is closed, and nobody waits for that.
void count(const httplib::Request & request, httplib::Response & response) {
    const std::string news = "/models/sse";
    const std::string & path = request.path;
    if (path.size() < news.size() ||
        path.compare(path.size() - news.size(), news.size(), news) != 0) {
        running++;
        response.user_data.set("running",
                               std::shared_ptr<void>(nullptr, [](void *) { running--; }));
    }
}

std::string restricted; // a path; empty if there is none
bool own_user_alone = false;

bool is_restricted(const std::string & path) {
    return !restricted.empty() && path.compare(0, restricted.size(), restricted) == 0 &&
           (path.size() == restricted.size() || path[restricted.size()] == '/');
}

// Why a request for what is restricted goes no further; empty if it does.
std::string restriction(const httplib::Request & request, const web_request & from) {
    if (web_is_other_page(from)) {
        return "no other page may see what is kept here";
    }
    // who may use a Unix socket, its file says
    const bool tcp = !request.remote_addr.empty();
    return own_user_alone && tcp &&
                   peer_is_another_user(request.remote_addr, request.remote_port,
                                        request.local_port)
               ? "this is kept for another user of the machine"
               : "";
}

// The router's processes get the headers of whoever asked the router, and so need its rules.
const char * const HANDED_DOWN = "PYLLAMAFILE_WEB";
const char PART = '\n', ITEM = ' ';

std::string joined(const std::vector<std::string> & list) {
    std::string out;
    for (const std::string & item : list) {
        out += item + ITEM;
    }
    return out;
}

std::vector<std::string> split(const std::string & text, char at) {
    std::vector<std::string> out;
    for (size_t start = 0, end; (end = text.find(at, start)) != std::string::npos;
         start = end + 1) {
        out.push_back(text.substr(start, end - start));
    }
    return out;
}

// The values of every occurrence of a flag, which goes.
std::vector<std::string> taken(arguments & args, const flag_table & flags, const char * flag) {
    std::vector<std::string> out;
    for (size_t at; (at = flags.find(args, { flag })) + 1 < args.size();) {
        std::string value = args[at + 1];
        while (!value.empty() && value.back() == '/') {
            value.pop_back();
        }
        for (char & c : value) {
            c = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
        }
        out.push_back(value);
        args.erase(args.begin() + (long)at, args.begin() + (long)at + 2);
    }
    return out;
}

void hand_down() {
    const std::string text =
        joined(policy.listens) + PART + joined(policy.hosts) + PART + joined(policy.origins) + PART;
    set_variable(HANDED_DOWN, text);
}

// 144 bits of the system's randomness, in letters that a URL takes as they are.
std::string random_key() {
    static const char LETTERS[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    std::random_device random;
    std::string key;
    while (key.size() < 24) {
        key += LETTERS[random() % 64];
    }
    return key;
}

std::string json_string(const std::string & text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
        }
        out += (unsigned char)c < 0x20 ? ' ' : c;
    }
    return out + '"';
}

} // namespace

std::string web_settle(arguments & args, const flag_table & flags,
                       const std::vector<std::string> & listens) {
    policy = { listens, taken(args, flags, "--allow-host"), taken(args, flags, "--allow-origin") };
    for (const std::string & list :
         taken(args, flags, "--cors-origins")) { // what upstream calls it
        for (const std::string & origin : split(list + ',', ',')) {
            policy.origins.push_back(origin);
        }
    }
    hand_down();
    const bool local = web_is_local(listens);
    const bool keyless = flags.take(args, { "--no-api-key" });
    if (local || keyless || flags.has(args, { "--api-key", "--api-key-file" }) ||
        getenv("LLAMA_API_KEY") != nullptr || getenv("LLAMA_ARG_API_KEY_FILE") != nullptr) {
        return "";
    }
    const std::string key = random_key();
    args.insert(args.end(), { "--api-key", key });
    return key;
}

void web_take_over_policy() {
    const char * text = getenv(HANDED_DOWN);
    const std::vector<std::string> parts = split(text != nullptr ? text : "", PART);
    if (parts.size() == 3) {
        policy = { split(parts[0], ITEM), split(parts[1], ITEM), split(parts[2], ITEM) };
    }
}

void web_restrict(const std::string & path, bool own_user) {
    restricted = path;
    own_user_alone = own_user;
}

int web_running() {
    return running;
}

void web_close() {
    closed = true;
}

bool web_answered(const httplib::Request & request, httplib::Response & response) {
    count(request, response); // first, so that whoever closes sees each that was let in
    if (closed && !is_restricted(request.path)) { // the last answer may still be kept
        response.status = 503;
        response.set_header("Connection", "close");
        response.set_content("{\"error\":{\"code\":503,\"message\":\"the server is ending\","
                             "\"type\":\"unavailable_error\"}}",
                             "application/json; charset=utf-8");
        return true;
    }
    const web_request from = { request.get_header_value("Host"), request.get_header_value("Origin"),
                               request.get_header_value("Sec-Fetch-Site"),
                               request.get_header_value("Sec-Fetch-Mode"),
                               request.get_header_value("Sec-Fetch-Dest") };
    response.set_header("Vary", "Origin");
    response.set_header("Content-Security-Policy", "frame-ancestors 'self'");
    std::string refusal = web_refusal(policy, from);
    if (refusal.empty() && is_restricted(request.path)) {
        refusal = restriction(request, from);
    }
    if (!refusal.empty()) {
        response.status = 403;
        response.set_content("{\"error\":{\"code\":403,\"message\":" + json_string(refusal) +
                                 ",\"type\":\"permission_error\"}}",
                             "application/json; charset=utf-8");
        return true;
    }
    if (web_is_other_page(from)) {
        response.set_header("Access-Control-Allow-Origin", from.origin);
    }
    if (request.method != "OPTIONS") {
        return false;
    }
    // A browser asks before it sends the key, so nothing but this may be answered without one.
    if (web_is_other_page(from)) {
        response.set_header("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS");
        response.set_header("Access-Control-Allow-Headers",
                            request.get_header_value("Access-Control-Request-Headers"));
    }
    response.set_content("", "text/plain");
    return true;
}

bool web_key_is_known(const std::vector<std::string> & keys, const std::string & given) {
    bool known = false;
    for (const std::string & key : keys) {
        known |= web_same_key(given, key);
    }
    return known;
}
