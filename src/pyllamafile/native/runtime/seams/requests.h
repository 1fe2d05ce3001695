// In front of upstream's server.cpp: whose fault an error is.
#pragma once

#include <exception>
#include <string>

// Whether what a route threw is the server's own fault. All else is about the request.
bool web_is_own_fault(const std::exception & error);

// Throws std::invalid_argument where a body is JSON that goes no further: too deep, no object where
// the route takes one, or with a field of a type that no route takes.
void web_check_body(const std::string & path, const std::string & body);
