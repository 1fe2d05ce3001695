// In front of upstream's json-schema.cpp and json-schema-to-grammar.cpp: JSON Schema's regular
// expressions as grammars. Upstream knows a small part of them, and takes any string for the rest.
#pragma once

#include <map>
#include <string>

// Adds the rules for JSON strings, quotes included, whose text a `pattern` of JSON Schema is found
// in, and that have `least` to `most` characters (-1: any number). Their names begin with `prefix`;
// gives that of the rule to start at. Throws std::invalid_argument with what of the pattern isn't
// supported, or wrong, and that names the pattern.
std::string add_pattern_rules(std::map<std::string, std::string> & rules,
                              const std::string & prefix, const std::string & pattern, int least,
                              int most);

// The pattern of what `format` of JSON Schema names; empty if there is none here.
std::string pattern_of_format(const std::string & format);
