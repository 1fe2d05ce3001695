// In front of server-http.cpp: web/guard.cpp decides which pages and which keys the server takes.
#pragma once

#include <cpp-httplib/httplib.h>

#include <string>
#include <vector>

// Answers a request that goes no further: one that is refused, or that only asks what is allowed.
bool web_answered(const httplib::Request & request, httplib::Response & response);

bool web_key_is_known(const std::vector<std::string> & keys, const std::string & given);
