// XLA custom calls for the matrix product, paged attention, RMSNorm and argmax.
//
// Each call checks shapes and dtypes again, so that a mistake in Python cannot cause an access out of bounds. The
// letters of shapes are those of ryzjax/dims.py.
#include <string>
#include <vector>

#include "ffi_calls.h"

namespace ryzjax {
namespace {

ffi::Error refuse(const std::string& what) { return ffi::Error::InvalidArgument("ryzjax_linear: " + what); }

// The format of one matrix. ryzjax/native/linear.py passes these six numbers for each matrix.
struct Format {
  int64_t kind;          // a WeightKind
  int64_t group, pack;   // as in LinearArgs
  int64_t has_zeros, has_codebook;
  int64_t activations;   // an Activations
};
constexpr size_t kFormatFields = 6;

// Fills `a` with one matrix from `arrays[at]` on, and advances `at`. Returns "", or a description of the error.
std::string take_matrix(const Format& format, ffi::RemainingArgs& arrays, size_t& at, LinearArgs& a) {
  const auto next = [&] { return arrays.get<ffi::AnyBuffer>(at++); };
  auto values = next();
  if (!values.has_value() || values->dimensions().size() != 2 || values->dimensions()[0] != a.n)
    return "a matrix does not fit its result";
  const int64_t columns = values->dimensions()[1];
  a.values = values->untyped_data();
  a.kind = static_cast<WeightKind>(format.kind);
  if (a.kind == WeightKind::kBfloat16) {
    a.group = a.k;
    return values->element_type() == ffi::BF16 && columns == a.k ? "" : "expected bfloat16 [N, K]";
  }
  const bool nibbles = a.kind == WeightKind::kNibbles;
  if (values->element_type() != (nibbles ? ffi::U8 : ffi::S8) || columns != (nibbles ? a.k / 2 : a.k))
    return "expected int8 [N, K] or nibbles [N, K / 2]";
  a.group = format.group, a.pack = format.pack;
  a.activations = static_cast<Activations>(format.activations);
  const bool is_halved_int8 = !nibbles && a.group == 16 && a.k % 32 == 0;
  if (a.group <= 0 || a.k % a.group || (a.group != a.k && a.group % 32 && !is_halved_int8))
    return "expected a group size that divides K and is K or a multiple of 32, or 16 for int8 with K a multiple of 32";
  if (nibbles && (a.pack <= 0 || (a.pack != 32 && a.pack % 64) || a.group % a.pack))
    return "expected runs of nibbles of 32 or a multiple of 64 columns that divide the group size";
  auto scales = next();
  if (!scales.has_value() || scales->dimensions().size() != 2) return "expected scales [N or 1, K / group]";
  a.scale_rows = scales->dimensions()[0];
  if ((a.scale_rows != a.n && a.scale_rows != 1) || scales->dimensions()[1] != a.k / a.group)
    return "expected scales [N or 1, K / group]";
  a.scales = scales->untyped_data();
  switch (scales->element_type()) {
    case ffi::F32: a.scale_kind = ScaleKind::kFloat32; break;
    case ffi::F16: a.scale_kind = ScaleKind::kFloat16; break;
    case ffi::U16:
    case ffi::BF16: a.scale_kind = ScaleKind::kBfloat16; break;
    case ffi::U8: a.scale_kind = ScaleKind::kNested; break;
    default: return "scales of this dtype are not supported";
  }
  if (format.has_zeros) {
    auto zeros = next();
    if (!zeros.has_value() || zeros->element_count() != scales->element_count()) return "zeros do not fit the scales";
    const bool is_half = zeros->element_type() == ffi::F16;
    if (!is_half && zeros->element_type() != (nibbles ? ffi::U8 : ffi::S8))
      return "expected zeros of float16, uint8 for nibbles or int8 for int8";
    a.zeros = zeros->untyped_data();
    a.zero_kind = is_half ? ZeroKind::kFloat16 : ZeroKind::kInteger;
  }
  if (format.has_codebook) {
    auto codebook = next();
    if (!codebook.has_value() || codebook->element_type() != ffi::F32 || codebook->element_count() != 16)
      return "the codebook is not 16 float32";
    a.codebook = static_cast<const float*>(codebook->untyped_data());
  }
  if (a.scale_kind == ScaleKind::kNested) {
    auto codes = next(), blocks = next(), offset = next();
    for (const auto* each : {&codes, &blocks, &offset})
      if (!each->has_value() || (*each)->element_type() != ffi::F32) return "expected nested scales' tables of float32";
    if (codes->element_count() != 256 || blocks->element_count() != (scales->element_count() + 255) / 256 ||
        offset->element_count() != 1)
      return "the tables of the nested scales do not fit them";
    a.scale_codes = static_cast<const float*>(codes->untyped_data());
    a.scale_blocks = static_cast<const float*>(blocks->untyped_data());
    a.scale_offset = *static_cast<const float*>(offset->untyped_data());
  }
  return "";
}

// Computes y_i [M, N_i] = x [M, K] W_i^T for each result i. `formats` holds kFormatFields numbers for each result.
ffi::Error linear(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::RemainingArgs arrays, ffi::RemainingRets results,
                  ffi::Span<const int64_t> formats) {
  if (x.element_type() != ffi::BF16 || x.dimensions().size() != 2) return refuse("expected x bfloat16 [M, K]");
  if (formats.size() != results.size() * kFormatFields) return refuse("expected six numbers of format for each result");
  if (kernels() == nullptr) return ffi::Error::Internal("ryzjax_linear: no implementation for this machine");
  std::vector<LinearArgs> matrices(results.size());
  size_t at = 0;
  for (size_t i = 0; i < matrices.size(); ++i) {
    LinearArgs& a = matrices[i] = {};
    auto out = results.get<ffi::Buffer<ffi::F32>>(i);
    a.m = x.dimensions()[0], a.k = x.dimensions()[1];
    if (!out.has_value() || (*out)->dimensions().size() != 2 || (*out)->dimensions()[0] != a.m)
      return refuse("expected results float32 [M, N]");
    a.n = (*out)->dimensions()[1];
    a.x = static_cast<const uint16_t*>(x.untyped_data());
    a.out = (*out)->typed_data();
    const int64_t* f = formats.begin() + i * kFormatFields;
    const std::string wrong = take_matrix({f[0], f[1], f[2], f[3], f[4], f[5]}, arrays, at, a);
    if (!wrong.empty()) return refuse(wrong);
  }
  if (at != arrays.size()) return refuse("more arrays than the formats name");
  if (x.element_count() > 0) kernels()->linear(matrices.data(), static_cast<int64_t>(matrices.size()), threads_of(pool));
  return ffi::Error::Success();
}

// Sets `kind` to the storage format of a cache array, which its dtype determines. Returns false for other dtypes.
bool kv_kind_of(const ffi::AnyBuffer& cache, KVKind& kind) {
  switch (cache.element_type()) {
    case ffi::F32: kind = KVKind::kFloat32; return true;
    case ffi::U16: kind = KVKind::kBfloat16; return true;
    case ffi::S8: kind = KVKind::kInt8; return true;
    case ffi::U8: kind = KVKind::kFloat8; return true;
    default: return false;
  }
}

// Writes k and v of every token into the cache, then computes attention (contract: attention.h). `rest` holds the
// scales of keys and of values if the cache has them, then the sinks if there are any. The results are `out` and the
// arrays of the cache, which share the memory of the arguments.
ffi::Error attend(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer k_cache,
                  ffi::AnyBuffer v_cache, Ints layer, Ints write_page, Ints write_offset, Ints page_table,
                  Ints query_start, Ints query_len, Ints context_len, Ints num_decode_rows, Ints num_rows,
                  ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> k_out,
                  ffi::Result<ffi::AnyBuffer> v_out, ffi::RemainingRets, float scale, int64_t window, float softcap,
                  bool has_sinks) {
  const auto refuse = [](const std::string& what) { return ffi::Error::InvalidArgument("ryzjax_attend: " + what); };
  if (kernels() == nullptr) return ffi::Error::Internal("ryzjax_attend: no implementation for this machine");
  AttentionArgs a = {};
  const auto type = q.element_type();
  if ((type != ffi::BF16 && type != ffi::F32) || k.element_type() != type || v.element_type() != type ||
      out->element_type() != type)
    return refuse("expected q, k, v and the result in bfloat16, or all in float32");
  a.is_bfloat16 = type == ffi::BF16;
  if (q.dimensions().size() != 3 || k.dimensions().size() != 3 || !same_shape(k, v) || !same_shape(*out, q))
    return refuse("expected q [T, N, D], k and v [T, H, D]");
  a.tokens = q.dimensions()[0], a.heads = q.dimensions()[1], a.head_dim = q.dimensions()[2];
  a.kv_heads = k.dimensions()[1];
  if (k.dimensions()[0] != a.tokens || k.dimensions()[2] != a.head_dim || a.kv_heads == 0 || a.heads % a.kv_heads)
    return refuse("q, k and v do not fit each other");
  const auto shape = k_cache.dimensions();
  if (!kv_kind_of(k_cache, a.kv_kind) || v_cache.element_type() != k_cache.element_type() ||
      !same_shape(v_cache, k_cache) || shape.size() != 5 || shape[2] != a.kv_heads || shape[4] != a.head_dim)
    return refuse("expected caches [layers, pages, H, page size, D] of float32, uint16, int8 or uint8");
  a.layers = shape[0], a.pages = shape[1], a.page_size = shape[3];
  if (k_out->untyped_data() != k_cache.untyped_data() || v_out->untyped_data() != v_cache.untyped_data())
    return refuse("the cache is not updated in place");
  const bool has_scales = a.kv_kind == KVKind::kInt8 || a.kv_kind == KVKind::kFloat8;
  if (rest.size() != (has_scales ? 2u : 0u) + (has_sinks ? 1u : 0u))
    return refuse("the number of scale and sink arrays does not fit the cache and has_sinks");
  if (has_scales) {
    const bool is_int8 = a.kv_kind == KVKind::kInt8;
    const size_t count = is_int8 ? a.layers * a.pages * a.kv_heads * a.page_size : a.layers * a.kv_heads;
    void** const scales[] = {&a.k_scale, &a.v_scale};
    for (size_t i = 0; i < 2; ++i) {
      auto buffer = rest.get<ffi::AnyBuffer>(i);
      if (!buffer.has_value() || buffer->element_type() != (is_int8 ? ffi::U16 : ffi::F32) ||
          buffer->element_count() != count)
        return refuse("scales do not fit the cache");
      *scales[i] = buffer->untyped_data();
    }
  }
  if (has_sinks) {
    auto sinks = rest.get<ffi::Buffer<ffi::F32>>(has_scales ? 2 : 0);
    if (!sinks.has_value() || sinks->element_count() != static_cast<size_t>(a.heads)) return refuse("sinks do not fit q");
    a.sinks = sinks->typed_data();
  }
  if (page_table.dimensions().size() != 2) return refuse("expected a page table [R, P]");
  a.rows = page_table.dimensions()[0], a.row_pages = page_table.dimensions()[1];
  for (const Ints* each : {&write_page, &write_offset})
    if (each->element_count() != static_cast<size_t>(a.tokens))
      return refuse("expected one page and one offset for each token");
  for (const Ints* each : {&query_start, &query_len, &context_len})
    if (each->element_count() != static_cast<size_t>(a.rows))
      return refuse("expected one start, length and context length for each row");
  for (const Ints* each : {&layer, &num_decode_rows, &num_rows})
    if (each->element_count() != 1) return refuse("expected layer, num_decode_rows and num_rows to be scalars");
  a.q = q.untyped_data(), a.k = k.untyped_data(), a.v = v.untyped_data(), a.out = out->untyped_data();
  a.k_cache = k_cache.untyped_data(), a.v_cache = v_cache.untyped_data();
  a.layer = *layer.typed_data();
  a.write_page = write_page.typed_data(), a.write_offset = write_offset.typed_data();
  a.page_table = page_table.typed_data();
  a.query_start = query_start.typed_data(), a.query_len = query_len.typed_data();
  a.context_len = context_len.typed_data();
  a.num_decode_rows = *num_decode_rows.typed_data(), a.num_rows = *num_rows.typed_data();
  a.scale = scale, a.window = window, a.softcap = softcap;
  const std::string wrong = check_attention(a);
  if (!wrong.empty()) return refuse(wrong);
  kernels()->attend(a, threads_of(pool));
  return ffi::Error::Success();
}

ffi::Error rms_norm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer weight, ffi::Result<ffi::AnyBuffer> out,
                    float eps, float offset) {
  const auto is_float = [](ffi::DataType type) { return type == ffi::BF16 || type == ffi::F32; };
  if (kernels() == nullptr) return ffi::Error::Internal("ryzjax_rms_norm: no implementation for this machine");
  if (!is_float(x.element_type()) || !is_float(weight.element_type()) || out->element_type() != x.element_type() ||
      out->element_count() != x.element_count() || x.dimensions().size() == 0 || weight.dimensions().size() != 1 ||
      x.dimensions().back() != weight.dimensions()[0])
    return ffi::Error::InvalidArgument("ryzjax_rms_norm: expected x [..., E] and weight [E] in bfloat16 or float32");
  NormArgs a = {};
  a.size = weight.dimensions()[0];
  a.rows = a.size ? static_cast<int64_t>(x.element_count()) / a.size : 0;
  a.is_bfloat16 = x.element_type() == ffi::BF16, a.weight_is_bfloat16 = weight.element_type() == ffi::BF16;
  a.x = x.untyped_data(), a.weight = weight.untyped_data(), a.out = out->untyped_data();
  a.eps = eps, a.offset = offset;
  kernels()->rms_norm(a, threads_of(pool));
  return ffi::Error::Success();
}

ffi::Error argmax(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Result<ffi::Buffer<ffi::S32>> at,
                  ffi::Result<ffi::Buffer<ffi::F32>> logsumexp) {
  if (kernels() == nullptr) return ffi::Error::Internal("ryzjax_argmax: no implementation for this machine");
  const auto shape = x.dimensions();
  if (shape.size() != 2 || shape[1] == 0 || at->element_count() != static_cast<size_t>(shape[0]) ||
      logsumexp->element_count() != static_cast<size_t>(shape[0]))
    return ffi::Error::InvalidArgument("ryzjax_argmax: expected x [S, V] and results [S]");
  const ArgmaxArgs a = {shape[0], shape[1], x.typed_data(), at->typed_data(), logsumexp->typed_data()};
  kernels()->argmax(a, threads_of(pool));
  return ffi::Error::Success();
}

}  // namespace
}  // namespace ryzjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(ryzjax_linear, ryzjax::linear,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("formats"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(ryzjax_attend, ryzjax::attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ryzjax::Ints>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .RemainingRets()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("softcap")
                                  .Attr<bool>("has_sinks"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(ryzjax_rms_norm, ryzjax::rms_norm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("eps")
                                  .Attr<float>("offset"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(ryzjax_argmax, ryzjax::argmax,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

// Returns the name of the instruction set in use, or "" if this machine cannot run the one that RYZJAX_NATIVE_ISA
// names.
extern "C" const char* ryzjax_native_isa() {
  return ryzjax::kernels() == nullptr ? "" : ryzjax::kernels()->name;
}
