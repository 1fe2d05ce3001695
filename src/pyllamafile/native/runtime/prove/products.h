// Products of every type of weights by the kernels of one level.
#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <string>
#include <vector>

struct product {
    std::string type; // of the weights
    std::vector<float> values;
};

// The same numbers each time, by the kernels of a level. Types that it can't multiply are left out.
std::vector<product> products_by(ggml_backend_reg_t kernels);

// What they should be: by arithmetic in double precision, of weights that ggml has unpacked.
std::vector<product> exact_products();

// Weights of a type whose quants are places in a grid, from any bytes: ggml takes half a minute to
// prepare the search for the best places. Empty for other types, which ggml quantizes at once.
std::vector<uint8_t> weights_of_grid(ggml_type type, int64_t columns, int64_t rows);

// How far two are apart: the root of the squares of all differences, over that of all values.
double distance(const product & one, const product & expected);
