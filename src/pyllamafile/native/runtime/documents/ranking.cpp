#include "documents/ranking.h"

#include "ggml-backend.h"
#include "unicode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

namespace {

const float K1 = 1.2f, B = 0.75f; // as most others have them

// In standard deviations of the cosines, what all words of the question are worth. The square of
// the share counts: a passage with most of the words is meant, and one with few has them by chance.
const float WORDS = 4;

// Han, kana, Thai, Lao, Khmer, Burmese: their words are not set apart.
bool stands_alone(uint32_t c) {
    return (c >= 0x0e00 && c < 0x1100) || (c >= 0x1780 && c < 0x1800) ||
           (c >= 0x3040 && c < 0x3100) || unicode_cpt_is_han(c);
}

// Harman's S stemmer (1991), which confuses little.
void make_singular(std::string & word) {
    const size_t size = word.size();
    const auto ends = [&](const char * end) {
        const size_t length = strlen(end);
        return size > length && word.compare(size - length, length, end) == 0;
    };
    if (size < 4 || word.back() != 's') {
        return;
    }
    if (ends("ies") && !ends("eies") && !ends("aies")) {
        word.replace(size - 3, 3, "y");
    } else if (!ends("us") && !ends("ss")) {
        word.pop_back();
    }
}

struct distribution {
    double mean = 0, deviation = 0;
};

distribution distribution_of(const scores & of) {
    double count = 0, sum = 0, squares = 0;
    for (const float score : of) {
        if (score > NO_SCORE) {
            count++;
            sum += score;
            squares += (double)score * score;
        }
    }
    if (count == 0) {
        return {};
    }
    const double mean = sum / count;
    return { mean, std::sqrt(std::max(squares / count - mean * mean, 0.0)) };
}

} // namespace

std::vector<std::string> words_of(const std::string & text) {
    std::vector<std::string> out;
    std::string word;
    const auto end_word = [&] {
        if (!word.empty()) {
            make_singular(word);
            out.push_back(word);
            word.clear();
        }
    };
    const auto take = [&](uint32_t c) {
        const unicode_cpt_flags flags = unicode_cpt_flags_from_cpt(c);
        if (stands_alone(c) && flags.is_letter) {
            end_word();
            out.push_back(unicode_cpt_to_utf8(c));
        } else if (flags.is_letter || flags.is_number) {
            word += unicode_cpt_to_utf8(unicode_tolower(c));
        } else if (!flags.is_accent_mark) {
            end_word();
        }
    };
    for (size_t i = 0; i < text.size();) {
        const unsigned char c = (unsigned char)text[i];
        if (c < 0x80) {
            i++;
            if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
                word += (char)c;
            } else if (c >= 'A' && c <= 'Z') {
                word += (char)(c + 'a' - 'A');
            } else {
                end_word();
            }
            continue;
        }
        for (const uint32_t part : unicode_cpts_normalize_nfd({ unicode_cpt_from_utf8(text, i) })) {
            take(part);
        }
    }
    end_word();
    return out;
}

word_index::word_index(const std::vector<std::string> & texts) : weights(texts.size()) {
    double total = 0;
    for (uint32_t text = 0; text < texts.size(); text++) {
        const std::vector<std::string> words = words_of(texts[text]);
        for (const std::string & word : words) {
            const auto [found, fresh] = numbers.try_emplace(word, (uint32_t)postings.size());
            if (fresh) {
                postings.emplace_back();
            }
            std::vector<posting> & of_word = postings[found->second];
            if (of_word.empty() || of_word.back().text != text) {
                of_word.push_back({ text, 0 });
            }
            of_word.back().times++;
        }
        weights[text] = (float)words.size();
        total += (double)words.size();
    }
    const double mean = std::max(total / std::max<double>((double)texts.size(), 1), 1.0);
    for (float & weight : weights) {
        weight = K1 * (1 - B + B * (float)(weight / mean));
    }
}

scores word_index::fit(const std::string & question) const {
    scores out(weights.size());
    float all_words = 0;
    std::vector<std::string> words = words_of(question);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    for (const std::string & word : words) {
        const auto found = numbers.find(word);
        if (found == numbers.end()) {
            continue;
        }
        const std::vector<posting> & of_word = postings[found->second];
        const double have = (double)of_word.size(), all = (double)weights.size();
        const float rarity = (float)std::log(1 + (all - have + 0.5) / (have + 0.5));
        for (const posting & each : of_word) {
            const float times = (float)each.times;
            out[each.text] += rarity * times * (K1 + 1) / (times + weights[each.text]);
        }
        all_words += rarity;
    }
    for (float & score : out) {
        score = score > 0 ? score / all_words : 0;
    }
    return out;
}

vector_index::vector_index(const std::vector<uint16_t> & rows, std::vector<uint32_t> owners,
                           uint32_t dimension, int threads)
    : owners(std::move(owners)) {
    backend.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    const size_t room = 8 * ggml_tensor_overhead() + ggml_graph_overhead();
    context.reset(ggml_init({ room, nullptr, true }));
    if (!backend || !context) {
        throw std::bad_alloc();
    }
    const ggml_backend_reg_t registry =
        ggml_backend_dev_backend_reg(ggml_backend_get_device(backend.get()));
    const auto set_threads = (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
        registry, "ggml_backend_set_n_threads");
    if (set_threads != nullptr) {
        set_threads(backend.get(), threads);
    }
    ggml_tensor * matrix = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, dimension,
                                              (int64_t)(rows.size() / dimension));
    question = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, dimension);
    product = ggml_mul_mat(context.get(), matrix, question);
    graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, product);
    buffer.reset(ggml_backend_alloc_ctx_tensors(context.get(), backend.get()));
    if (!buffer) {
        throw std::bad_alloc();
    }
    ggml_backend_tensor_set(matrix, rows.data(), 0, rows.size() * sizeof(uint16_t));
}

scores vector_index::fit(const std::vector<float> & vector) {
    std::vector<float> cosines((size_t)ggml_nelements(product));
    ggml_backend_tensor_set(question, vector.data(), 0, vector.size() * sizeof(float));
    ggml_backend_graph_compute(backend.get(), graph);
    ggml_backend_tensor_get(product, cosines.data(), 0, cosines.size() * sizeof(float));
    scores best(owners.empty() ? 0 : owners.back() + 1, NO_SCORE);
    for (size_t row = 0; row < owners.size(); row++) {
        float & of_passage = best[owners[row]];
        if (std::isfinite(cosines[row]) && cosines[row] > of_passage) {
            of_passage = cosines[row];
        }
    }
    return best;
}

std::vector<ranked> merged(const scores & by_words, const scores & by_vectors, size_t most) {
    const distribution cosines = distribution_of(by_vectors);
    std::vector<ranked> out;
    for (uint32_t i = 0; i < by_words.size(); i++) {
        const bool has_vector = i < by_vectors.size() && by_vectors[i] > NO_SCORE;
        if (by_words[i] == 0 && !has_vector) {
            continue;
        }
        double score = WORDS * by_words[i] * by_words[i];
        if (has_vector && cosines.deviation > 0) {
            score += (by_vectors[i] - cosines.mean) / cosines.deviation;
        }
        out.push_back({ i, score });
    }
    const auto better = [](const ranked & a, const ranked & b) {
        return a.score != b.score ? a.score > b.score : a.number < b.number;
    };
    const size_t count = std::min(most, out.size());
    std::partial_sort(out.begin(), out.begin() + (ptrdiff_t)count, out.end(), better);
    out.resize(count);
    return out;
}
