// Which keywords of JSON Schema are refused in strict mode: without them, more would be valid.

#include "seams/schemas.h"

#include "seams/bounded.h"

#include <set>
#include <stdexcept>
#include <string>

namespace {

const std::set<std::string> UNKEPT = {
    "$dynamicRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "maxProperties",
    "minContains",
    "minProperties",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "uniqueItems",
    "patternProperties",
    "unevaluatedProperties",
};

// What holds further schemas: one, a list of them, or one for each name.
const std::set<std::string> ONE_OR_LIST = {
    "additionalProperties", "allOf", "anyOf", "items", "oneOf", "prefixItems"
};
const std::set<std::string> BY_NAME = { "$defs", "definitions", "properties" };

void look(const common_json & schema, const std::string & place) {
    const nested<void> level("the schema");
    if (schema.is_array()) {
        int i = 0;
        for (const auto & part : schema) {
            look(part, place + "/" + std::to_string(i++));
        }
    }
    if (!schema.is_object()) {
        return;
    }
    for (const auto & [key, value] : schema.items()) {
        const std::string here = place + "/" + key;
        if (UNKEPT.count(key) > 0 && !(value == false)) {
            throw std::invalid_argument("the schema can't be kept to strictly: " + here +
                                        " isn't supported");
        }
        if (ONE_OR_LIST.count(key) > 0) {
            look(value, here);
        } else if (BY_NAME.count(key) > 0 && value.is_object()) {
            for (const auto & [name, part] : value.items()) {
                look(part, here + "/" + name);
            }
        }
    }
}

} // namespace

void refuse_unkept_keywords(const common_json & schema) {
    look(schema, "#");
}
