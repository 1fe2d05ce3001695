// Each kernel of Metal's that layer.cpp takes, computed one number after another in double
// precision. Its arguments are llama.cpp's own structures, which the kernels' text shares.
#include <cstddef>
#include <cstdint>

#include "ggml-metal-impl.h"
#include "kernels.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <unistd.h>

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

void rows(const call & c, const ggml_metal_kargs_get_rows & a) {
    each(a.ne10, c.groups[1], c.groups[2], [&](int64_t i, int64_t i1, int64_t i2) {
        int32_t row;
        memcpy(&row, c.buffers[2] + i2 * a.nb12 + i1 * a.nb11 + i * a.nb10, sizeof row);
        const char * from = c.buffers[1] + i2 * a.nb03 + i1 * a.nb02 + row * a.nb01;
        memcpy(c.buffers[3] + i2 * a.nb3 + i1 * a.nb2 + i * a.nb1, from, a.ne00 * sizeof(float));
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

template <class Arguments> void product(const call & c, const Arguments & a) {
    each(a.ne01, a.ne1, a.ne12, [&](int64_t i, int64_t j, int64_t i2) {
        const char * x = c.buffers[1] + i * a.nb01 + i2 / a.r2 * a.nb02;
        const char * y = c.buffers[2] + j * a.nb11 + i2 * a.nb12;
        double sum = 0;
        for (int k = 0; k < a.ne00; k++) {
            sum += static_cast<double>(at(x, k * a.nb00)) * at(y, k * a.nb10);
        }
        at(c.buffers[3], 4 * (i + a.ne0 * (j + a.ne1 * i2))) = sum;
    });
}

void copy(const call & c, const ggml_metal_kargs_cpy & a) {
    int64_t n = 0;
    each(a.ne01, a.ne02, a.ne03, [&](int64_t i1, int64_t i2, int64_t i3) {
        for (int64_t i = 0; i < a.ne00; i++, n++) {
            const int64_t to = n % a.ne0 * a.nb0 + n / a.ne0 % a.ne1 * a.nb1 +
                               n / (a.ne0 * a.ne1) % a.ne2 * a.nb2 +
                               n / (a.ne0 * a.ne1 * a.ne2) * a.nb3;
            at(c.buffers[2], to) =
                at(c.buffers[1], i * a.nb00 + i1 * a.nb01 + i2 * a.nb02 + i3 * a.nb03);
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

const struct {
    const char * prefix;
    void (*run)(const call &);
} KERNELS[] = {
    { "kernel_get_rows_f32", run<ggml_metal_kargs_get_rows, rows> },
    { "kernel_rms_norm_", run<ggml_metal_kargs_norm, rms_norm> },
    { "kernel_mul_mv_ext_f32_f32", run<ggml_metal_kargs_mul_mv_ext, product> },
    { "kernel_mul_mv_f32_f32", run<ggml_metal_kargs_mul_mv, product> },
    { "kernel_cpy_f32_f32", run<ggml_metal_kargs_cpy, copy> },
    { "kernel_rope_norm_f32", run<ggml_metal_kargs_rope, rope> },
    { "kernel_soft_max_f32", run<ggml_metal_kargs_soft_max, soft_max> },
    { "kernel_bin_fuse_f32", run<ggml_metal_kargs_bin, binary> },
    { "kernel_swiglu_f32", run<ggml_metal_kargs_glu, swiglu> },
};

} // namespace

void kernel_run(const call * call) {
    for (const auto & kernel : KERNELS) {
        if (strncmp(call->name, kernel.prefix, strlen(kernel.prefix)) == 0) {
            printf("kernel %s\n", kernel.prefix);
            kernel.run(*call);
            return;
        }
    }
    require(false, call->name);
}
