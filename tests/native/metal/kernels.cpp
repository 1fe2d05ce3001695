// Each kernel of Metal's that layers.cpp, the trial and a small model take, computed one number
// after another in double precision. Its arguments are llama.cpp's own structures, which the
// kernels' text shares.
#include <cstddef>
#include <cstdint>

#include "ggml-metal-impl.h"
#include "ggml.h"
#include "kernels.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

float & at(const char * bytes, size_t offset) {
    return *reinterpret_cast<float *>(const_cast<char *>(bytes) + offset);
}

void require(bool condition, const char * what) {
    if (!condition) {
        fprintf(stderr, "no kernel here does that: %s\n", what);
        _exit(1);
    }
}

// Calls f with every place of three dimensions.
template <class F> void each(int64_t n1, int64_t n2, int64_t n3, F f) {
    for (int64_t i3 = 0; i3 < n3; i3++) {
        for (int64_t i2 = 0; i2 < n2; i2++) {
            for (int64_t i1 = 0; i1 < n1; i1++) {
                f(i1, i2, i3);
            }
        }
    }
}

// The type that a kernel's name has behind `prefix` and in front of `suffix`.
ggml_type type_in(const char * name, const char * prefix, const char * suffix) {
    const std::string rest = name + strlen(prefix);
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const std::string type = ggml_type_name(static_cast<ggml_type>(i));
        if (!type.empty() && rest.rfind(type + suffix, 0) == 0) {
            return static_cast<ggml_type>(i);
        }
    }
    require(false, name);
    return GGML_TYPE_COUNT;
}

std::vector<float> numbers(ggml_type type, const char * row, int64_t count) {
    std::vector<float> out(count);
    if (type == GGML_TYPE_F32) {
        memcpy(out.data(), row, count * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(row, out.data(), count);
    }
    return out;
}

void rows(const call & c, const ggml_metal_kargs_get_rows & a) {
    const ggml_type type = type_in(c.name, "kernel_get_rows_", "");
    each(a.ne10, c.groups[1], c.groups[2], [&](int64_t i, int64_t i1, int64_t i2) {
        int32_t row;
        memcpy(&row, c.buffers[2] + i2 * a.nb12 + i1 * a.nb11 + i * a.nb10, sizeof row);
        const std::vector<float> x =
            numbers(type, c.buffers[1] + i2 * a.nb03 + i1 * a.nb02 + row * a.nb01, a.ne00);
        memcpy(c.buffers[3] + i2 * a.nb3 + i1 * a.nb2 + i * a.nb1, x.data(),
               x.size() * sizeof(float));
    });
}

void put_rows(const call & c, const ggml_metal_kargs_set_rows & a) {
    const bool wide = strstr(c.name, "_i64_");
    const ggml_type type =
        type_in(c.name, wide ? "kernel_set_rows_f32_i64_" : "kernel_set_rows_f32_i32_", "");
    each(a.ne01, c.groups[1], c.groups[2], [&](int64_t i1, int64_t i2, int64_t i3) {
        int64_t row = 0;
        memcpy(&row, c.buffers[2] + i3 % a.ne12 * a.nb12 + i2 % a.ne11 * a.nb11 + i1 * a.nb10,
               wide ? sizeof(int64_t) : sizeof(int32_t));
        const char * from = c.buffers[1] + i3 * a.nb03 + i2 * a.nb02 + i1 * a.nb01;
        ggml_quantize_chunk(type, reinterpret_cast<const float *>(from),
                            c.buffers[3] + i3 * a.nb3 + i2 * a.nb2 + row * a.nb1, 0, 1,
                            a.nk0 * ggml_blck_size(type), nullptr);
    });
}

void rms_norm(const call & c, const ggml_metal_kargs_norm & a) {
    const bool with_factor = strstr(c.name, "_mul");
    const bool with_summand = strstr(c.name, "_add");
    each(c.groups[0], c.groups[1], c.groups[2], [&](int64_t i1, int64_t i2, int64_t i3) {
        auto row = [&](int n) {
            return c.buffers[1 + n] + i3 % a.nef3[n] * a.nbf3[n] + i2 % a.nef2[n] * a.nbf2[n] +
                   i1 % a.nef1[n] * a.nbf1[n];
        };
        char * out = c.buffers[4] + i3 * a.nb3 + i2 * a.nb2 + i1 * a.nb1;
        double sum = 0;
        for (int i = 0; i < a.ne00; i++) {
            sum += static_cast<double>(at(row(0), 4 * i)) * at(row(0), 4 * i);
        }
        const double scale = 1 / std::sqrt(sum / a.ne00 + a.eps);
        for (int i = 0; i < a.ne00; i++) {
            const double factor = with_factor ? at(row(1), 4 * i) : 1;
            const double summand = with_summand ? at(row(2), 4 * i) : 0;
            at(out, 4 * i) = at(row(0), 4 * i) * scale * factor + summand;
        }
    });
}

template <class Arguments>
void product(const call & c, const Arguments & a, const char * prefix, double factor) {
    const ggml_type type = type_in(c.name, prefix, "_f32");
    require(c.groups[2] == static_cast<unsigned long>(a.ne12), "four dimensions");
    each(a.ne0, a.ne12, 1, [&](int64_t i, int64_t i2, int64_t) {
        const std::vector<float> x =
            numbers(type, c.buffers[1] + i * a.nb01 + i2 / a.r2 * a.nb02, a.ne00);
        for (int64_t j = 0; j < a.ne1; j++) {
            const char * y = c.buffers[2] + j * a.nb11 + i2 * a.nb12;
            double sum = 0;
            for (int k = 0; k < a.ne00; k++) {
                sum += static_cast<double>(x[k]) * at(y, k * a.nb10);
            }
            at(c.buffers[3], 4 * (i + a.ne0 * (j + a.ne1 * i2))) = sum * factor;
        }
    });
}

void of_a_column(const call & c, const ggml_metal_kargs_mul_mv & a) {
    product(c, a, "kernel_mul_mv_", 1);
}

void of_some(const call & c, const ggml_metal_kargs_mul_mv_ext & a) {
    product(c, a, "kernel_mul_mv_ext_", 1);
}

void of_many(const call & c, const ggml_metal_kargs_mul_mm & a) {
    const char * fails = getenv("METAL_FAILS");
    product(c, a, "kernel_mul_mm_", fails && strcmp(fails, "product") == 0 ? 1.1 : 1);
}

// What a token scores with each position; -INFINITY where it does not look.
template <class Arguments, class F>
std::vector<double> scores_of(const call & c, const Arguments & a, int width, int64_t head,
                              int64_t token, F looks) {
    const char * query = c.buffers[1] + token * a.nb01 + head * a.nb02;
    const int64_t shared = head / (a.ne02 / a.ne_12_2);
    std::vector<double> out(a.ne11, -INFINITY);
    for (int64_t i = 0; i < a.ne11; i++) {
        if (looks(i)) {
            const std::vector<float> key =
                numbers(GGML_TYPE_F16, c.buffers[2] + i * a.nb11 + shared * a.nb12, width);
            out[i] = 0;
            for (int k = 0; k < width; k++) {
                out[i] += static_cast<double>(key[k]) * at(query, 4 * k) * a.scale;
            }
        }
    }
    return out;
}

template <class Arguments>
void add_mask(const call & c, const Arguments & a, int64_t head, int64_t token,
              std::vector<double> & scores) {
    const std::vector<float> mask = numbers(
        GGML_TYPE_F16, c.buffers[4] + token * a.nb31 + head % a.ne32 * a.nb32, scores.size());
    for (size_t i = 0; i < scores.size(); i++) {
        scores[i] += mask[i];
    }
}

struct seen {
    double top, sum;          // the best score, and all shares, of which that has 1
    std::vector<double> mean; // of the values, times that sum
};

// What is at the positions, as much of each as its score says.
template <class Arguments>
seen look(const call & c, const Arguments & a, int width, int64_t head,
          const std::vector<double> & scores) {
    const int64_t shared = head / (a.ne02 / a.ne_12_2);
    seen out = { -1e30, 0, std::vector<double>(width) };
    for (const double score : scores) {
        out.top = std::fmax(out.top, score);
    }
    for (size_t i = 0; i < scores.size(); i++) {
        const double share = std::exp(scores[i] - out.top);
        if (share > 0) {
            const std::vector<float> value =
                numbers(GGML_TYPE_F16, c.buffers[3] + i * a.nb21 + shared * a.nb22, width);
            out.sum += share;
            for (int k = 0; k < width; k++) {
                out.mean[k] += share * value[k];
            }
        }
    }
    return out;
}

// Each group of threads takes its share of the positions; the next kernel adds up what they found.
void attention(const call & c, const ggml_metal_kargs_flash_attn_ext_vec & a) {
    const int * flags = c.constants + FC_FLASH_ATTN_EXT_VEC;
    for (int i = 1; i < 6; i++) {
        require(!flags[i], "sinks, ALiBi, a soft cap, padding, gaps");
    }
    const int64_t lanes = flags[22], groups = flags[23];
    int keys, values;
    require(sscanf(c.name, "kernel_flash_attn_ext_vec_f16_dk%d_dv%d", &keys, &values) == 2, c.name);
    float * out = reinterpret_cast<float *>(c.buffers[7]);
    const int64_t rows = int64_t(a.ne1) * a.ne2 * a.ne3;
    each(groups, a.ne02, a.ne01, [&](int64_t group, int64_t head, int64_t token) {
        std::vector<double> scores = scores_of(c, a, keys, head, token, [&](int64_t i) {
            return i / OP_FLASH_ATTN_EXT_VEC_NCPSG / lanes % groups == group;
        });
        if (flags[0]) {
            add_mask(c, a, head, token, scores);
        }
        const seen found = look(c, a, values, head, scores);
        const int64_t row = head + token * a.ne1;
        for (int k = 0; k < values; k++) {
            out[4 * (row * values / 4 * groups + groups * (k / 4) + group) + k % 4] = found.mean[k];
        }
        float * sums = out + rows * values * groups + row * 2 * groups + 2 * group;
        sums[0] = found.sum;
        sums[1] = found.top;
    });
}

// Which blocks of a mask anybody looks at: 0 for none, 2 for all of it, 1 for a part.
void blocks(const call & c, const ggml_metal_kargs_flash_attn_ext_blk & a) {
    const int64_t height = c.constants[FC_FLASH_ATTN_EXT_BLK + 24];
    const int64_t width = c.constants[FC_FLASH_ATTN_EXT_BLK + 25];
    each(c.groups[0], c.groups[1], c.groups[2], [&](int64_t x, int64_t y, int64_t i2) {
        const bool whole = (x + 1) * width <= a.ne30 && (y + 1) * height <= a.ne31;
        float least = INFINITY, most = -INFINITY;
        for (int64_t j = y * height; whole && j < (y + 1) * height; j++) {
            const char * row = c.buffers[1] + j * a.nb31 + i2 % a.ne32 * a.nb32 +
                               i2 / a.ne32 * a.nb33 + x * width * sizeof(ggml_fp16_t);
            for (const float value : numbers(GGML_TYPE_F16, row, width)) {
                least = std::fmin(least, value);
                most = std::fmax(most, value);
            }
        }
        c.buffers[2][(i2 * c.groups[1] + y) * c.groups[0] + x] = !whole                    ? 1
                                                                 : most == -INFINITY       ? 0
                                                                 : least == 0 && most == 0 ? 2
                                                                                           : 1;
    });
}

void attention_of_many(const call & c, const ggml_metal_kargs_flash_attn_ext & a) {
    const int * flags = c.constants + FC_FLASH_ATTN_EXT;
    require(flags[0], "attention without a mask");
    for (int i = 1; i < 5; i++) {
        require(!flags[i], "sinks, ALiBi, a soft cap, padding");
    }
    int keys, values;
    require(sscanf(c.name, "kernel_flash_attn_ext_f16_dk%d_dv%d", &keys, &values) == 2, c.name);
    const int64_t high = OP_FLASH_ATTN_EXT_NQPSG, wide = OP_FLASH_ATTN_EXT_NCPSG;
    const int64_t down = (a.ne01 + high - 1) / high, across = (a.ne11 + wide - 1) / wide;
    each(a.ne02, a.ne01, 1, [&](int64_t head, int64_t token, int64_t) {
        const char * marks = c.buffers[7] + (head % a.ne32 * down + token / high) * across;
        std::vector<double> scores =
            scores_of(c, a, keys, head, token, [&](int64_t i) { return marks[i / wide] != 0; });
        add_mask(c, a, head, token, scores);
        const seen found = look(c, a, values, head, scores);
        for (int k = 0; k < values; k++) {
            at(c.buffers[8], 4 * (k + values * (head + token * a.ne1))) = found.mean[k] / found.sum;
        }
    });
}

void added_up(const call & c, const ggml_metal_kargs_flash_attn_ext_vec_reduce & a) {
    const int64_t width = c.constants[FC_FLASH_ATTN_EXT_VEC_REDUCE];
    const int64_t groups = c.constants[FC_FLASH_ATTN_EXT_VEC_REDUCE + 1];
    const float * in = reinterpret_cast<const float *>(c.buffers[1]);
    float * out = reinterpret_cast<float *>(c.buffers[2]);
    for (int64_t row = 0; row < a.nrows; row++) {
        const float * sums = in + a.nrows * width * groups + row * 2 * groups;
        double top = -INFINITY, sum = 0;
        for (int64_t i = 0; i < groups; i++) {
            top = std::fmax(top, sums[2 * i + 1]);
        }
        for (int64_t i = 0; i < groups; i++) {
            sum += sums[2 * i] * std::exp(sums[2 * i + 1] - top);
        }
        for (int64_t k = 0; k < width; k++) {
            double all = 0;
            for (int64_t i = 0; i < groups; i++) {
                all += in[4 * (row * width / 4 * groups + groups * (k / 4) + i) + k % 4] *
                       std::exp(sums[2 * i + 1] - top);
            }
            out[row * width + k] = all / sum;
        }
    }
}

void copy(const call & c, const ggml_metal_kargs_cpy & a) {
    const ggml_type from = type_in(c.name, "kernel_cpy_", "_");
    const std::string before = std::string("kernel_cpy_") + ggml_type_name(from) + "_";
    const ggml_type type = type_in(c.name, before.c_str(), "");
    int64_t n = 0;
    each(a.ne01, a.ne02, a.ne03, [&](int64_t i1, int64_t i2, int64_t i3) {
        for (int64_t i = 0; i < a.ne00; i++, n++) {
            const int64_t to = n % a.ne0 * a.nb0 + n / a.ne0 % a.ne1 * a.nb1 +
                               n / (a.ne0 * a.ne1) % a.ne2 * a.nb2 +
                               n / (a.ne0 * a.ne1 * a.ne2) * a.nb3;
            const char * in = c.buffers[1] + i * a.nb00 + i1 * a.nb01 + i2 * a.nb02 + i3 * a.nb03;
            const std::vector<float> value = numbers(from, in, 1);
            ggml_quantize_chunk(type, value.data(), c.buffers[2] + to, 0, 1, 1, nullptr);
        }
    });
}

void rope(const call & c, const ggml_metal_kargs_rope & a) {
    require(a.ext_factor == 0 && !a.src2 && !a.n_offs, "YaRN, frequencies, positions of images");
    each(a.ne1, a.ne2, a.ne3, [&](int64_t i1, int64_t i2, int64_t i3) {
        const char * in = c.buffers[1] + i3 * a.nb03 + i2 * a.nb02 + i1 * a.nb01;
        char * out = c.buffers[4] + i3 * a.nb3 + i2 * a.nb2 + i1 * a.nb1;
        int32_t position;
        memcpy(&position, c.buffers[2] + i2 * sizeof position, sizeof position);
        for (int i = 0; i < a.ne0; i += 2) {
            const double frequency = std::pow(a.freq_base, -static_cast<double>(i) / a.n_dims);
            const double angle = i < a.n_dims ? position * frequency * a.freq_scale : 0;
            const double x = at(in, i * a.nb00), y = at(in, (i + 1) * a.nb00);
            at(out, i * a.nb0) = x * std::cos(angle) - y * std::sin(angle);
            at(out, (i + 1) * a.nb0) = x * std::sin(angle) + y * std::cos(angle);
        }
    });
}

void soft_max(const call & c, const ggml_metal_kargs_soft_max & a) {
    // What is not there is the first buffer once more.
    require(a.max_bias == 0 && c.buffers[3] == c.buffers[1], "ALiBi, sinks");
    const bool with_mask = c.buffers[2] != c.buffers[1];
    each(a.ne01, a.ne02, c.groups[2], [&](int64_t i1, int64_t i2, int64_t i3) {
        const char * in = c.buffers[1] + i3 * a.nb03 + i2 * a.nb02 + i1 * a.nb01;
        const char * mask =
            c.buffers[2] + i3 % a.ne13 * a.nb13 + i2 % a.ne12 * a.nb12 + i1 * a.nb11;
        char * out = c.buffers[4] + i3 * a.nb3 + i2 * a.nb2 + i1 * a.nb1;
        auto value = [&](int i) {
            return static_cast<double>(at(in, 4 * i)) * a.scale + (with_mask ? at(mask, 4 * i) : 0);
        };
        double top = -INFINITY, sum = 0;
        for (int i = 0; i < a.ne00; i++) {
            top = std::fmax(top, value(i));
        }
        for (int i = 0; i < a.ne00; i++) {
            sum += std::exp(value(i) - top);
        }
        for (int i = 0; i < a.ne00; i++) {
            at(out, 4 * i) = std::exp(value(i) - top) / sum;
        }
    });
}

// Sums or products of two tensors, or of several that llama.cpp has made one of.
void binary(const call & c, const ggml_metal_kargs_bin & a) {
    const int operation = c.constants[FC_BIN], summands = c.constants[FC_BIN + 1];
    require(operation == 0 || operation == 2, "a difference, a quotient");
    const std::string name = c.name;
    const int lanes = name.compare(name.size() - 2, 2, "_4") == 0 ? 4 : 1;
    each(a.ne1, a.ne2, a.ne3, [&](int64_t i1, int64_t i2, int64_t i3) {
        const char * in = c.buffers[1] + a.offs + i3 * a.nb03 + i2 * a.nb02 + i1 * a.nb01;
        const char * other =
            c.buffers[2] + i3 % a.ne13 * a.nb13 + i2 % a.ne12 * a.nb12 + i1 % a.ne11 * a.nb11;
        char * out = c.buffers[3] + a.offs + i3 * a.nb3 + i2 * a.nb2 + i1 * a.nb1;
        for (int i = 0; i < a.ne0 * lanes; i++) {
            double value = at(in, 4 * i);
            for (int n = 0; n < summands; n++) {
                const float x = at(other + a.o1[n], i % (a.ne10 * lanes) * 4);
                value = operation == 0 ? value + x : value * x;
            }
            at(out, 4 * i) = value;
        }
    });
}

void swiglu(const call & c, const ggml_metal_kargs_glu & a) {
    for (size_t row = 0; row < c.groups[0]; row++) {
        for (int i = 0; i < a.ne0; i++) {
            const double gate = at(c.buffers[1], row * a.nb01 + 4 * (a.i00 + i));
            const double up = at(c.buffers[2], row * a.nb11 + 4 * (a.i10 + i));
            at(c.buffers[3], row * a.nb1 + 4 * i) = gate / (1 + std::exp(-gate)) * up;
        }
    }
}

template <class Arguments, void f(const call &, const Arguments &)> void run(const call & c) {
    require(c.size == sizeof(Arguments), "arguments of another size");
    f(c, *static_cast<const Arguments *>(c.arguments));
}

struct {
    const char * prefix;
    void (*run)(const call &);
    bool was_run = false;
} KERNELS[] = {
    { "kernel_get_rows_", run<ggml_metal_kargs_get_rows, rows> },
    { "kernel_set_rows_", run<ggml_metal_kargs_set_rows, put_rows> },
    { "kernel_rms_norm_", run<ggml_metal_kargs_norm, rms_norm> },
    { "kernel_mul_mv_ext_", run<ggml_metal_kargs_mul_mv_ext, of_some> },
    { "kernel_mul_mv_", run<ggml_metal_kargs_mul_mv, of_a_column> },
    { "kernel_mul_mm_", run<ggml_metal_kargs_mul_mm, of_many> },
    { "kernel_flash_attn_ext_vec_reduce",
      run<ggml_metal_kargs_flash_attn_ext_vec_reduce, added_up> },
    { "kernel_flash_attn_ext_vec_", run<ggml_metal_kargs_flash_attn_ext_vec, attention> },
    { "kernel_flash_attn_ext_blk", run<ggml_metal_kargs_flash_attn_ext_blk, blocks> },
    { "kernel_flash_attn_ext_f16_", run<ggml_metal_kargs_flash_attn_ext, attention_of_many> },
    { "kernel_cpy_", run<ggml_metal_kargs_cpy, copy> },
    { "kernel_rope_norm_f32", run<ggml_metal_kargs_rope, rope> },
    { "kernel_soft_max_f32", run<ggml_metal_kargs_soft_max, soft_max> },
    { "kernel_bin_fuse_f32", run<ggml_metal_kargs_bin, binary> },
    { "kernel_swiglu_f32", run<ggml_metal_kargs_glu, swiglu> },
};

} // namespace

void kernel_run(const call * call) {
    for (auto & kernel : KERNELS) {
        if (strncmp(call->name, kernel.prefix, strlen(kernel.prefix)) == 0) {
            kernel.was_run = true;
            kernel.run(*call);
            return;
        }
    }
    require(false, call->name);
}

void kernel_report() {
    for (const auto & kernel : KERNELS) {
        if (kernel.was_run) {
            printf("kernel %s\n", kernel.prefix);
        }
    }
}
