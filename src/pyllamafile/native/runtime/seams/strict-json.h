// In front of upstream's readers of requests, which take the default for a value of a wrong type,
// and say so in the log alone: the client is told.
#pragma once

#define json_value json_value_or_default
#include "server-common.h"
#undef json_value

#include <stdexcept>
#include <string>
#include <type_traits>

// As upstream's, whose one function of this name is hidden above.
template <typename T>
static T json_value(const json & body, const std::string & key, const T & otherwise) {
    if (!body.is_object()) {
        throw std::invalid_argument("what should have \"" + key + "\" isn't an object");
    }
    if (!body.contains(key) || body.at(key).is_null()) {
        return otherwise;
    }
    if constexpr (std::is_same_v<T, json>) {
        if ((otherwise.is_object() && !body.at(key).is_object()) ||
            (otherwise.is_array() && !body.at(key).is_array())) {
            throw std::invalid_argument("\"" + key + "\" has a wrong type");
        }
    }
    try {
        return body.at(key).get<T>();
    } catch (const common_json_error & error) {
        throw std::invalid_argument("\"" + key + "\" has a wrong type: " + error.what());
    }
}
