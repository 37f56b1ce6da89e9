// XLA custom calls for attention within segments and its gradient.
//
// Each call checks shapes and dtypes again, so that a mistake in Python cannot cause an access out of bounds. The
// letters of shapes are those of ryzjax/dims.py.
#include <string>

#include "ffi_calls.h"

namespace ryzjax {
namespace {

using Floats = ffi::Buffer<ffi::F32>;

// Fills `shape` from q [B, S, N, D], k and v [B, S, H, D]. Returns "", or a description of the error.
std::string take_shape(const ffi::AnyBuffer& q, const ffi::AnyBuffer& k, const ffi::AnyBuffer& v, const Ints& segments,
                       SegmentShape& shape) {
  const auto type = q.element_type();
  if (type != ffi::BF16 && type != ffi::F32) return "expected bfloat16 or float32";
  if (k.element_type() != type || v.element_type() != type) return "q, k and v are not of one dtype";
  const auto d = q.dimensions(), kd = k.dimensions();
  if (d.size() != 4 || kd.size() != 4 || !same_shape(k, v) || kd[0] != d[0] || kd[1] != d[1] || kd[3] != d[3] ||
      kd[2] == 0 || d[2] % kd[2])
    return "expected q [B, S, N, D], k and v [B, S, H, D], N a multiple of H";
  shape.rows = d[0], shape.length = d[1], shape.heads = d[2], shape.kv_heads = kd[2], shape.head_dim = d[3];
  shape.is_bfloat16 = type == ffi::BF16;
  const auto s = segments.dimensions();
  if (s.size() != 2 || s[0] != d[0] || s[1] != d[1]) return "expected segment ids [B, S]";
  shape.segment_ids = segments.typed_data();
  return "";
}

// Whether `lse` has shape [B, N, S].
bool is_lse(const Floats& lse, const SegmentShape& shape) {
  const auto d = lse.dimensions();
  return d.size() == 3 && d[0] == shape.rows && d[1] == shape.heads && d[2] == shape.length;
}

bool is_like(const ffi::AnyBuffer& a, const ffi::AnyBuffer& b) {
  return a.element_type() == b.element_type() && same_shape(a, b);
}

// `sinks` holds one array, or none.
ffi::Error segment_forward(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, Ints segments,
                           ffi::RemainingArgs sinks, ffi::Result<ffi::AnyBuffer> out, ffi::Result<Floats> lse,
                           float scale, int64_t window, float softcap) {
  const auto refuse = [](const std::string& what) {
    return ffi::Error::InvalidArgument("ryzjax_segment_forward: " + what);
  };
  if (kernels() == nullptr) return ffi::Error::Internal("ryzjax_segment_forward: no implementation for this machine");
  SegmentForwardArgs a = {};
  const std::string wrong = take_shape(q, k, v, segments, a.shape);
  if (!wrong.empty()) return refuse(wrong);
  if (!is_like(*out, q) || !is_lse(*lse, a.shape)) return refuse("expected results like q and float32 [B, N, S]");
  if (sinks.size() > 1) return refuse("expected one array of sinks");
  if (sinks.size() == 1) {
    auto array = sinks.get<Floats>(0);
    if (!array.has_value() || array->element_count() != static_cast<size_t>(a.shape.heads))
      return refuse("expected sinks float32 [N]");
    a.sinks = array->typed_data();
  }
  a.shape.scale = scale, a.shape.window = window, a.shape.softcap = softcap;
  a.q = q.untyped_data(), a.k = k.untyped_data(), a.v = v.untyped_data();
  a.out = out->untyped_data(), a.lse = lse->typed_data();
  if (q.element_count() > 0) kernels()->segment_forward(a, threads_of(pool));
  return ffi::Error::Success();
}

// The last two results are scratch memory for the sums of parts, [parts, B, S, H, D]. Callers must not read them.
ffi::Error segment_backward(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, Ints segments,
                            ffi::AnyBuffer out, Floats lse, ffi::AnyBuffer grad, ffi::Result<ffi::AnyBuffer> q_grad,
                            ffi::Result<ffi::AnyBuffer> k_grad, ffi::Result<ffi::AnyBuffer> v_grad,
                            ffi::Result<Floats> k_parts, ffi::Result<Floats> v_parts, float scale, int64_t window,
                            float softcap, int64_t parts) {
  const auto refuse = [](const std::string& what) {
    return ffi::Error::InvalidArgument("ryzjax_segment_backward: " + what);
  };
  if (kernels() == nullptr) return ffi::Error::Internal("ryzjax_segment_backward: no implementation for this machine");
  SegmentBackwardArgs a = {};
  const std::string wrong = take_shape(q, k, v, segments, a.shape);
  if (!wrong.empty()) return refuse(wrong);
  if (!is_like(out, q) || !is_like(grad, q) || !is_lse(lse, a.shape))
    return refuse("expected out and its gradient like q, lse float32 [B, N, S]");
  if (!is_like(*q_grad, q) || !is_like(*k_grad, k) || !is_like(*v_grad, v)) return refuse("expected gradients like q, k and v");
  if (parts <= 0 || a.shape.heads / a.shape.kv_heads % parts)
    return refuse("expected parts to divide the number of query heads per KV head");
  const size_t needed = parts == 1 ? 0 : static_cast<size_t>(parts) * k.element_count();
  if (k_parts->element_count() != needed || v_parts->element_count() != needed)
    return refuse("expected parts float32 [parts, B, S, H, D], or empty if parts is 1");
  a.shape.scale = scale, a.shape.window = window, a.shape.softcap = softcap;
  a.q = q.untyped_data(), a.k = k.untyped_data(), a.v = v.untyped_data();
  a.out = out.untyped_data(), a.grad = grad.untyped_data(), a.lse = lse.typed_data();
  a.q_grad = q_grad->untyped_data(), a.k_grad = k_grad->untyped_data(), a.v_grad = v_grad->untyped_data();
  a.parts = parts, a.k_parts = k_parts->typed_data(), a.v_parts = v_parts->typed_data();
  if (q.element_count() > 0) kernels()->segment_backward(a, threads_of(pool));
  return ffi::Error::Success();
}

}  // namespace
}  // namespace ryzjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(ryzjax_segment_forward, ryzjax::segment_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ryzjax::Ints>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ryzjax::Floats>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("softcap"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(ryzjax_segment_backward, ryzjax::segment_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ryzjax::Ints>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ryzjax::Floats>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ryzjax::Floats>()
                                  .Ret<ryzjax::Floats>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("parts"));
